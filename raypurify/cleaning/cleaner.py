"""Cleans one unit: reads, purifies, measures, writes, and then says so in the manifest. Plain torch.

Images are purified in batches of one shape. Which images share a batch follows from the plan and the batch's size, so a
unit that is done again gives the same bytes.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raypurify import images, models, storage
from raypurify.attacks import abstains, check_votes
from raypurify.cleaning import reader, writer
from raypurify.cleaning.accounts import Cleaned
from raypurify.cleaning.plan import UnitContent
from raypurify.cleaning.quarantine import is_of_machine
from raypurify.cleaning.reader import Item
from raypurify.cleaning.tiles import NotFiniteError, PixelPurifier
from raypurify.data import BATCH_PIXELS, View, batch_size
from raypurify.images import Picture
from raypurify.metrics import compare
from raypurify.runs import fields, stages
from raypurify.seeds import seed_of

Format = Literal["png", "jpeg", "webp", "bmp", "tiff"]
Ask = Callable[[Tensor, Sequence[str]], list[Any]]
"""A question to a classifier: from images (N, C, H, W) in [0, 1], as it sees them, and their ids to N answers."""

PENDING = 1 << 24
"""Pixels that may pass before images that wait for others of their shape are purified without them."""
LOSSY = ("jpeg", "webp")
"""Formats that change pixels: an image is measured, and labelled, as it was written."""
TRIAL = (32, 32)
"""Pixels of the black images that a purifier is tried on, if it does not say which it was trained on."""


@dataclass(frozen=True, kw_only=True)
class CleaningConfig:
    """What is cleaned, by what, and what is written."""

    input: str
    """A path or a URL: a folder, file, glob or list of images, or Parquet files or WebDataset tars of them."""
    purifier: str = "weights/photos/cru_net"
    """The purifier that cleans: a checkpoint, or NAME[,KEY=VALUE...], or my_package.module:callable. The default comes
    with the project, for photographs."""
    classifier: str | None = None
    """A classifier that labels each image before and after, where it takes images of that shape. It sees an image as
    those that it was trained on were shown, if it says how."""
    certify_draws: int = 0
    """With a number above 0, and a classifier, each image goes so many times through Gaussian noise, purifier and
    classifier, and is told as detected where the vote abstains; 100 will do. There is no vote on an image that is too
    large to be purified whole, or that the classifier does not take."""
    certify_sigma: float = 0.25
    """Standard deviation of this noise, on pixels in [0, 1]."""
    shards: writer.Shards = "mirror"
    """mirror: an image for each image, a Parquet file for each range of rows of one, a tar for each tar, under their
    own names. parquet, webdataset: a shard for each unit, images only."""
    format: Format = "png"
    """The format that images are written in."""
    quality: int = 90
    """Quality of JPEG and WebP, from 1 to 100."""
    keep_exif: bool = False
    """Keep EXIF, which may hold places and names. The ICC profile is always kept."""
    max_pixels: int = images.MAX_PIXELS
    """Images of more pixels (height times width) are rejected."""
    limit: int | None = None
    """Clean the first so many pieces of the input only: image files, runs of rows of Parquet files, tars."""
    precision: models.Precision = "float32"
    """The type that the networks compute in. float32 goes without TF32."""
    seed: int = 0
    """Seed of a purifier that draws at random."""

    @property
    def extension(self) -> str:
        """The extension of the images that are written."""
        return images.FORMATS[self.format].extension

    def __post_init__(self) -> None:
        fields.check_choices(self)
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be in [1, 100]; got {self.quality!r}")
        if not 1 <= self.max_pixels <= images.LARGEST_PIXELS:
            raise ValueError(f"max_pixels must be in [1, {images.LARGEST_PIXELS}]; got {self.max_pixels!r}")
        check_votes(self.certify_draws, self.certify_sigma)
        if self.certify_draws and self.classifier is None:
            raise ValueError("certify_draws needs a classifier whose answers are the votes; give --classifier")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1; got {self.limit!r}")


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """What every worker knows of a cleaning; can be sent to any of them."""

    config: CleaningConfig
    output: str
    purifier: models.Model
    classifier: models.Model | None

    @classmethod
    def load(cls, config: CleaningConfig, output: str) -> Cleaning:
        """Find the models that the config names.

        Raises:
            ValueError, FileNotFoundError: see :func:`raypurify.models.load`.
        """
        classifier = None if config.classifier is None else models.load("classifier", config.classifier)
        purifier = models.load("purifier", config.purifier)
        return cls(config=config, output=output, purifier=purifier, classifier=classifier)

    def identity(self) -> dict[str, Any]:
        """The identity of the run: what may not differ between calls on one output."""
        identity = asdict(self.config) | {"purifier_sha256": self.purifier.identity}
        if self.classifier is not None:
            identity["classifier_sha256"] = self.classifier.identity
        if not self.config.certify_draws:
            del identity["certify_draws"], identity["certify_sigma"]
        return identity


class Cleaner:
    """Cleans units on a device."""

    def __init__(
        self,
        work: Cleaning,
        device: str,
        *,
        batch: int,
        threads: int,
        batch_pixels: int = BATCH_PIXELS,
        check_lease: writer.Check = lambda: None,
    ) -> None:
        self.work, self.device, self.batch, self.batch_pixels = work, device, batch, batch_pixels
        self.threads, self.check_lease = threads, check_lease
        purifier = models.placed(work.purifier.build(), device)
        self.channels = channels_of(work.purifier, purifier, device)
        self.classifier, self.needs_colour = None, False
        if work.classifier:
            self.classifier = models.placed(work.classifier.build(), device)
            self.needs_colour = _needs_colour(work.classifier, self.classifier, device)
        self.purifier = PixelPurifier(purifier, device=device, precision=work.config.precision)
        self.encoders = ThreadPoolExecutor(threads)

    def __call__(
        self, unit: UnitContent, killers: Mapping[str, str] | None = None, count: int | None = None
    ) -> Cleaned:
        """Clean a unit and publish its images; for ``killers`` and ``count`` see :class:`reader.Limits`."""
        config, done = self.work.config, Cleaned()
        limits = reader.Limits(max_pixels=config.max_pixels, threads=self.threads, killers=killers or {}, count=count)
        folder = storage.join(self.work.output, "images")
        shard = writer.shard(folder, unit.name, config.shards, config.format, self.check_lease)
        for segment in stages.each("read", reader.segments(unit, limits)):
            sink = shard or writer.mirror(folder, segment, config.format, self.check_lease)
            for item in self._in_order(stages.each("read", segment.items)):
                with stages.spending("write"):
                    self._take(item, sink, done)
            if sink is not shard:
                with stages.spending("write"):
                    sink.close()
        if shard:
            with stages.spending("write"):
                shard.close()
        return done

    def try_out(self, item: Item) -> None:
        """Do with one item alone all that is done with items, but do not write it."""
        self._check_channels(item)
        if item.picture is not None:
            self._purify([item])
        if item.encoded is not None:
            with suppress(ValueError):
                item.encoded.result()

    def _in_order(self, items: Iterable[Item]) -> Iterator[Item]:
        """Purify in batches of one shape, and give the items back in their order."""
        line: deque[Item] = deque()
        waiting: defaultdict[tuple[int, ...], list[Item]] = defaultdict(list)
        behind = 0
        for item in items:
            self._check_channels(item)
            line.append(item)
            behind += len(item.data or b"")
            if item.picture is not None:
                shape = item.picture.pixels.shape
                behind += shape[0] * shape[1]
                waiting[shape].append(item)
                if len(waiting[shape]) >= batch_size(self.batch, self.batch_pixels, shape):
                    self._purify(waiting.pop(shape))
                if behind > PENDING:
                    self._purify_all(waiting)
                    behind = 0
            while line and (line[0].picture is None or line[0].encoded is not None):
                yield line.popleft()
        self._purify_all(waiting)
        yield from line

    def _check_channels(self, item: Item) -> None:
        """Reject an image of more channels than the purifier takes."""
        if item.picture is not None and not fits(item.picture.pixels.shape[2], self.channels):
            own, name = item.picture.pixels.shape[2], self.work.purifier.name
            item.reject("purify", f"it has {own} channels; the purifier {name} takes {self.channels}")

    def _purify_all(self, waiting: dict[tuple[int, ...], list[Item]]) -> None:
        while waiting:
            self._purify(waiting.pop(next(iter(waiting))))

    def _purify(self, items: Sequence[Item]) -> None:
        """Purify, measure and begin to encode images of one shape; those that the purifier fails on are rejected."""
        pictures = [cast(Picture, item.picture) for item in items]
        before = np.stack([picture.pixels for picture in pictures])
        try:
            after = self._purified(before, [item.id for item in items])
        except Exception as error:
            if is_of_machine(error):
                raise
            if len(items) > 1:
                for item in items:
                    self._purify([item])
            else:
                name = self.work.purifier.name
                items[0].reject("purify", f"the purifier {name} fails on it: {type(error).__name__}: {error}")
            return
        config, format = self.work.config, self.work.config.format
        encode = partial(images.encode, format=format, quality=config.quality, keep_exif=config.keep_exif)
        cleaned = [replace(picture, pixels=pixels) for picture, pixels in zip(pictures, after, strict=True)]
        encoded = [self.encoders.submit(encode, picture) for picture in cleaned]
        # Where transparency can't be written, the image is on white, and so is what it is compared with.
        flattens = not images.FORMATS[format].alpha and any(picture.alpha is not None for picture in pictures)
        if format in LOSSY or flattens:
            after = np.stack([_reread(future, pixels) for future, pixels in zip(encoded, after, strict=True)])
        if flattens:
            before = np.stack([images.on_white(picture) for picture in pictures])
        with stages.spending("measure"):
            measures = compare(after, before)
        ids = [item.id for item in items]
        told = {
            "pred_input": self._answers(self._labels, before, ids),
            "pred_cleaned": self._answers(self._labels, after, ids),
            "detected": self._answers(self._votes, before, ids) if config.certify_draws else [None] * len(items),
        }
        for index, item in enumerate(items):
            numbers = {name: float(values[index]) for name, values in measures.items()}
            item.measures = {name: None if np.isnan(number) else number for name, number in numbers.items()}
            item.measures |= {name: answers[index] for name, answers in told.items()}
            item.cleaned, item.encoded = after[index], encoded[index]

    def _purified(self, pixels: NDArray[np.uint8], ids: Sequence[str]) -> NDArray[np.uint8]:
        """(N, H, W, C) purified; grey images go through a colour purifier as colour."""
        is_grey = self.channels == 3 > pixels.shape[3]
        seeds = [seed_of(self.work.config.seed, "purify", id) for id in ids]
        with stages.spending("purify"):
            purified = self.purifier(np.repeat(pixels, 3, axis=3) if is_grey else pixels, seeds)
        return _grey(purified) if is_grey else purified

    def _labels(self, x: Tensor, ids: Sequence[str]) -> list[Any]:
        """The classifier's labels."""
        labels: list[Any] = cast(nn.Module, self.classifier)(x).argmax(dim=1).tolist()
        return labels

    def _votes(self, x: Tensor, ids: Sequence[str]) -> list[Any]:
        """Where the vote abstains; None where there is none."""
        if x.shape[2] * x.shape[3] > self.purifier.tiling.whole:
            return [None] * len(x)
        config = self.work.config
        networks = cast(nn.Module, self.classifier), _AsCleaned(self.purifier, self.channels)
        seeds = [seed_of(config.seed, "vote", id) for id in ids]
        votes = abstains(*networks, x, seeds, draws=config.certify_draws, sigma=config.certify_sigma)
        return list(votes.tolist())

    def _answers(self, ask: Ask, pixels: NDArray[np.uint8], ids: Sequence[str]) -> list[Any]:
        """What the classifier answers of images (N, H, W, C); None for each that it does not take."""
        model = self.work.classifier
        if self.needs_colour and pixels.shape[3] == 1:
            pixels = np.repeat(pixels, 3, axis=3)
        shown = None if model is None else _shown(model, pixels)
        if shown is None:
            return [None] * len(pixels)
        try:
            with stages.spending("classify"), torch.no_grad(), models.autocast(self.device, self.work.config.precision):
                return ask(torch.from_numpy(shown).to(self.device).permute(0, 3, 1, 2).float().div(255), ids)
        except Exception as error:
            if is_of_machine(error):
                raise
            if len(pixels) == 1:
                return [None]
            return [self._answers(ask, one[None], [id])[0] for one, id in zip(pixels, ids, strict=True)]

    def _take(self, item: Item, sink: writer.Sink, done: Cleaned) -> None:
        """Hand an item to its sink, and note what became of it."""
        if item.header and not item.stage:
            sink.pass_on(item)
            return
        if item.encoded is not None:
            try:
                data, notes = item.encoded.result()
            except ValueError as error:
                item.reject("encode", str(error))
        if item.picture is None:
            done.reject(item)
            sink.reject(item)
            return
        url, row = sink.put(item, data)
        grey = ("grey, purified as RGB",) if item.picture.pixels.shape[2] == 1 and self.channels == 3 else ()
        told = {"notes": [*item.picture.notes, *grey, *notes], "purifier_sha256": self.work.purifier.identity}
        done.add(item, len(data), output=url, row=row, **told)


class _AsCleaned(nn.Module):
    """A purifier as a cleaning sends images through it: padded, and grey ones in colour."""

    random = True

    def __init__(self, purifier: PixelPurifier, channels: int | None) -> None:
        super().__init__()
        self.purifier, self.channels = purifier, channels

    def forward(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        """(N, C, H, W) -> the same; a seed for each image."""
        if self.channels == 1 < x.shape[1]:  # a grey image, that the classifier is shown in colour
            return self.purifier.purified(x[:, :1], seeds).expand_as(x)
        if self.channels != 3 or x.shape[1] == 3:
            return self.purifier.purified(x, seeds)
        return self.purifier.purified(x.expand(-1, 3, -1, -1), seeds).mean(dim=1, keepdim=True)


def fits(own: int, channels: int | None) -> bool:
    """Whether a purifier of so many channels can take an image of ``own``; a grey one goes through in colour."""
    return channels in (None, 3, own)


def channels_of(model: models.Model, purifier: nn.Module, device: str) -> int | None:
    """Channels of the images that a purifier, built from ``model``, takes by trial: 1, 3, or None for both.

    Raises:
        ValueError: it takes neither.
    """
    height, width = tuple(model.config.get("image_shape", TRIAL))[:2]
    purify = PixelPurifier(purifier, device=device)
    taken, trouble = _taken(lambda channels: purify(np.zeros((1, height, width, channels), np.uint8), [0]))
    if not taken:
        raise ValueError(
            f"the purifier {model.name} takes neither grey nor colour images of {height}x{width} pixels: {trouble}"
        )
    return taken[0] if len(taken) == 1 else None


def _needs_colour(model: models.Model, classifier: nn.Module, device: str) -> bool:
    """Whether a classifier, built from ``model``, takes RGB images and no grey ones, by trial."""
    side = model.config.get("view", {}).get("crop") or TRIAL[0]
    height, width = tuple(model.config.get("image_shape", (side, side)))[:2]
    with torch.no_grad():
        taken, _ = _taken(lambda channels: classifier(torch.zeros(1, channels, height, width, device=device)))
    return taken == [3]


def _taken(attempt: Callable[[int], object]) -> tuple[list[int], Exception | None]:
    """With which of 1 and 3 channels an attempt at a black image succeeds, and how the last other one failed."""
    taken, trouble = [], None
    for channels in (1, 3):
        try:
            with suppress(NotFiniteError):  # a purifier that divides by the brightest pixel takes a black image, too
                attempt(channels)
            taken.append(channels)
        except Exception as error:
            if is_of_machine(error):
                raise
            trouble = error
    return taken, trouble


def _shown(classifier: models.Model, pixels: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """(N, H, W, C) as the images of a classifier's training were shown; None where it does not take them.

    A classifier that does not say which shape it was trained on takes all.
    """
    trained, view = tuple(classifier.config.get("image_shape", ())), View(**classifier.config.get("view", {}))
    if pixels.shape[1:] != trained and not view.has_shown(pixels.shape[1:]):
        try:
            pixels = np.stack([view.show(image) for image in pixels])
        except ValueError:  # smaller than the crop
            return None
    return pixels if trained in ((), pixels.shape[1:]) else None


def _reread(encoded: Future[tuple[bytes, tuple[str, ...]]], pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, C) as a reader of the written file sees it; ``pixels`` where it could not be encoded."""
    try:
        read = images.read_picture(encoded.result()[0]).pixels
    except ValueError:
        return pixels
    return read if read.shape == pixels.shape else _grey(read[None])[0]


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, H, W, 3) as (N, H, W, 1): the mean of the channels, rounded."""
    return np.rint(pixels.mean(axis=3, keepdims=True)).astype(np.uint8)
