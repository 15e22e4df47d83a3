"""Cleans one unit: reads, purifies, measures, writes, and then says so in the manifest. Plain torch.

Images are purified in batches of one shape. Which images share a batch follows from the plan and the batch's size, so a
unit that is done again gives the same bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raypurify import images, models, storage
from raypurify.cleaning import reader, writer
from raypurify.cleaning.base import Unit
from raypurify.cleaning.config import CleaningConfig
from raypurify.cleaning.reader import Group, Input
from raypurify.cleaning.streams import TableSpool
from raypurify.cleaning.tiles import NotFiniteError, Tiling, compare, purify_pixels
from raypurify.images import Picture
from raypurify.runs import schema
from raypurify.seeds import seed_of
from raypurify.storage.published import published
from raypurify.training import autocast

BATCH_PIXELS = 1 << 22
"""Pixels that are purified at once, if they come in images small enough to go whole."""
PENDING = 4
"""Batches' worth of images of other shapes that may pass before an image that waits for its like is purified alone."""
CHANGES = 4
"""Images of a unit that are kept for the report."""
THUMBNAIL = 256
"""Pixels, the longest side of these."""
LOSSY = ("jpeg", "webp")
"""Formats that change pixels: an image is measured, and labelled, as it was written."""
TRIAL = (32, 32)
"""Pixels of the black images that a purifier is tried on, if it does not say which it was trained on."""


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
        """What may not differ between calls on one output."""
        hashes = {"purifier_sha256": self.purifier.identity}
        if self.classifier is not None:
            hashes["classifier_sha256"] = self.classifier.identity
        return {**asdict(self.config), **hashes}


@dataclass(kw_only=True)
class Cleaned:
    """What became of a unit."""

    rows: TableSpool = field(default_factory=lambda: TableSpool(schema.MANIFEST))
    rejects: TableSpool = field(default_factory=lambda: TableSpool(schema.REJECTS))
    changes: list[dict[str, Any]] = field(default_factory=list)
    """Of ``schema.CHANGES``: the most changed images, small."""
    bytes_out: int = 0

    def add(self, row: dict[str, Any]) -> None:
        """Note a cleaned image, without credentials and in what UTF-8 has."""
        self.rows.append(published(row))

    def reject(self, item: Input, url: str, stage: str, reason: str) -> None:
        """Note a reject, likewise."""
        self.rejects.append(published({"id": item.id, "url": url, "stage": stage, "reason": reason}))


@dataclass(kw_only=True)
class Slot:
    """An input on its way, in line behind those before it."""

    item: Input
    pixels: NDArray[np.uint8] | None = None
    """(H, W, C) uint8, as the purifier takes them; None when they are done, or when there are none."""
    cleaned: NDArray[np.uint8] | None = None
    measures: dict[str, Any] = field(default_factory=dict)
    encoded: Future[tuple[bytes, tuple[str, ...]]] | None = None


class Cleaner:
    """Cleans units on a device."""

    def __init__(
        self, work: Cleaning, device: str, *, batch: int, threads: int, check_lease: writer.Check = lambda: None
    ) -> None:
        """``check_lease``: raises where another attempt may hold the output; called before each write and removal."""
        self.work, self.device, self.batch, self.threads, self.check_lease = work, device, batch, threads, check_lease
        self.purifier = models.placed(work.purifier.build(), device)
        self.classifier = models.placed(work.classifier.build(), device) if work.classifier else None
        self.channels = channels_of(work.purifier, self.purifier, device)
        self.tiling = Tiling()
        self.encoders = ThreadPoolExecutor(threads)

    def __call__(self, unit: Unit, killers: Mapping[str, str] | None = None, count: int | None = None) -> Cleaned:
        """Clean a unit and publish its images.

        Args:
            unit: what to clean.
            killers: see :class:`raypurify.cleaning.reader.Limits`; likewise ``count``.
        """
        config, done = self.work.config, Cleaned()
        limits = reader.Limits(max_pixels=config.max_pixels, threads=self.threads, killers=killers or {}, count=count)
        images_url = storage.join(self.work.output, "images")
        shared = writer.shard(images_url, unit, config, self.check_lease)
        for group in reader.groups(unit, limits):
            sink = shared or writer.mirror(images_url, group, config, self.check_lease)
            for slot in self._in_line(group.inputs):
                self._take(slot, group, sink, done)
            if sink is not shared:
                sink.close()
        if shared:
            shared.close()
        return done

    def try_out(self, item: Input) -> None:
        """Do all that is done with an input, alone, but for writing it."""
        slot = self._slot(item)
        if slot.pixels is not None:
            self._purify([slot])
        if slot.encoded is not None:
            with suppress(ValueError):
                slot.encoded.result()

    def _in_line(self, inputs: Iterable[Input]) -> Iterator[Slot]:
        """Purify in batches of one shape, and give the inputs back in their order."""
        line: deque[Slot] = deque()
        waiting: dict[tuple[int, ...], list[Slot]] = {}
        behind = 0
        for item in inputs:
            slot = self._slot(item)
            line.append(slot)
            behind += len(item.other or b"")
            if slot.pixels is not None:
                behind += slot.pixels[:, :, 0].size
                kind = (*slot.pixels.shape, cast(Picture, item.picture).pixels.shape[2])
                alike = waiting.setdefault(kind, [])
                alike.append(slot)
                if len(alike) >= min(self.batch, BATCH_PIXELS // slot.pixels[:, :, 0].size):
                    self._purify(waiting.pop(kind))
                if behind > PENDING * BATCH_PIXELS:
                    behind = self._purify_all(waiting)
            while line and line[0].pixels is None:
                yield line.popleft()
        self._purify_all(waiting)
        yield from line

    def _slot(self, item: Input) -> Slot:
        if item.picture is None:
            return Slot(item=item)
        pixels = item.picture.pixels
        if not fits(pixels.shape[2], self.channels):
            reason = f"it has {pixels.shape[2]} channels; the purifier {self.work.purifier.name} takes {self.channels}"
            return Slot(item=replace(item, picture=None, stage="purify", reason=reason))
        return Slot(item=item, pixels=np.repeat(pixels, 3, axis=2) if self.channels == 3 > pixels.shape[2] else pixels)

    def _purify_all(self, waiting: dict[tuple[int, ...], list[Slot]]) -> int:
        for slots in waiting.values():
            self._purify(slots)
        waiting.clear()
        return 0

    def _purify(self, slots: Sequence[Slot]) -> None:
        """Purify, measure and begin to encode images of one shape; those that the purifier fails on are rejected."""
        try:
            purified = self._purified(slots)
        except Exception as error:
            if is_of_machine(error):
                raise
            if len(slots) > 1:
                for slot in slots:
                    self._purify([slot])
                return
            reason = f"the purifier {self.work.purifier.name} fails on it: {type(error).__name__}: {error}"
            item = replace(slots[0].item, picture=None, stage="purify", reason=reason)
            slots[0].item, slots[0].pixels = item, None
            return
        config = self.work.config
        pictures = [cast(Picture, slot.item.picture) for slot in slots]
        before = np.stack([picture.pixels for picture in pictures])
        after = purified if purified.shape == before.shape else _grey(purified)
        encoded = [
            self.encoders.submit(
                images.encode,
                replace(picture, pixels=pixels),
                config.format,
                quality=config.quality,
                keep_exif=config.keep_exif,
            )
            for picture, pixels in zip(pictures, after, strict=True)
        ]
        # Where transparency can't be written, the colours change: the image is shown on white.
        hides = not images.FORMATS[config.format].alpha
        if config.format in LOSSY or (hides and any(picture.alpha is not None for picture in pictures)):
            after = np.stack([_reread(future, pixels) for future, pixels in zip(encoded, after, strict=True)])
        measures = compare(after, before)
        labels = self._labels(before), self._labels(after)
        for index, slot in enumerate(slots):
            slot.measures = {name: _number(values[index]) for name, values in measures.items()}
            slot.measures |= {"pred_input": labels[0][index], "pred_cleaned": labels[1][index]}
            slot.cleaned, slot.encoded, slot.pixels = after[index], encoded[index], None

    def _purified(self, slots: Sequence[Slot]) -> NDArray[np.uint8]:
        return purify_pixels(
            self.purifier,
            np.stack([cast(NDArray[np.uint8], slot.pixels) for slot in slots]),
            [seed_of(self.work.config.seed, "purify", slot.item.id) for slot in slots],
            tiling=self.tiling,
            device=self.device,
            precision=self.work.config.precision,
        )

    def _labels(self, pixels: NDArray[np.uint8]) -> Sequence[int | None]:
        """The classifier's labels of (N, H, W, C), or None for each where there is no classifier of such images."""
        model = self.work.classifier
        if self.classifier is None or model is None or not takes(model, pixels.shape[1:]):
            return [None] * len(pixels)
        try:
            with torch.no_grad(), autocast(self.device, self.work.config.precision):
                x = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float().div(255)
                labels: list[int] = self.classifier(x).argmax(dim=1).tolist()
                return labels
        except Exception as error:
            if is_of_machine(error):
                raise
            if len(pixels) == 1:
                return [None]
            return [label for one in pixels for label in self._labels(one[None])]

    def _take(self, slot: Slot, group: Group, sink: writer.Sink, done: Cleaned) -> None:
        """Hand an input that is through to its sink, and note what became of it."""
        item = slot.item
        entry = group.entries[item.position if group.entries[0].kind == "image" else 0]
        if item.other is not None:
            sink.pass_on(item)
            return
        if slot.encoded is None or item.picture is None:
            done.reject(item, entry.url, item.stage, item.reason)
            sink.reject(item)
            return
        try:
            data, notes = slot.encoded.result()
        except ValueError as error:
            done.reject(item, entry.url, "encode", str(error))
            sink.reject(item)
            return
        height, width, channels = item.picture.pixels.shape
        url, row = sink.put(item, data, (height, width))
        done.bytes_out += len(data)
        _keep_most_changed(done.changes, slot, item.picture.pixels)
        grey = ("grey, purified as RGB",) if channels == 1 and self.channels == 3 else ()
        done.add(
            {
                "id": item.id,
                "source": entry.url,
                "output": url,
                "row": row,
                "width": width,
                "height": height,
                "channels": channels,
                "notes": [*item.picture.notes, *grey, *notes],
                **slot.measures,
                "purifier_sha256": self.work.purifier.identity,
            }
        )


def _keep_most_changed(changes: list[dict[str, Any]], slot: Slot, before: NDArray[np.uint8]) -> None:
    order = (slot.measures["psnr"], slot.item.id)
    if len(changes) == CHANGES and order > (changes[-1]["psnr"], changes[-1]["id"]):
        return
    after = cast(NDArray[np.uint8], slot.cleaned)
    small = {"input": images.thumbnail(before, THUMBNAIL), "cleaned": images.thumbnail(after, THUMBNAIL)}
    changes.append({"id": slot.item.id, "psnr": slot.measures["psnr"], **small})
    changes.sort(key=lambda change: (change["psnr"], change["id"]))
    del changes[CHANGES:]


def fits(own: int, channels: int | None) -> bool:
    """Whether a purifier of so many channels can take an image of ``own``; a grey one goes through in colour."""
    return channels in (None, 3, own)


def channels_of(model: models.Model, purifier: nn.Module, device: str) -> int | None:
    """Channels of the images that a purifier takes, found by trial: 1, 3, or None for both.

    Args:
        model: what it was built from; tells which images it was trained on.
        purifier: on ``device``.

    Raises:
        ValueError: it takes neither.
    """
    height, width = tuple(model.config.get("image_shape", TRIAL))[:2]
    taken, trouble = [], None
    for channels in (1, 3):
        try:
            purify_pixels(purifier, np.zeros((1, height, width, channels), np.uint8), [0], device=device)
            taken.append(channels)
        except NotFiniteError:
            # A purifier that divides by the brightest pixel takes a black image, too.
            taken.append(channels)
        except Exception as error:
            if is_of_machine(error):
                raise
            trouble = error
    if not taken:
        raise ValueError(
            f"the purifier {model.name} takes neither grey nor colour images of {height}x{width} pixels: {trouble}"
        )
    return taken[0] if len(taken) == 1 else None


def is_of_machine(error: BaseException) -> bool:
    """Whether a network's failure says nothing of its images: memory has run out, or a GPU is in trouble."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        said in str(error) for said in ("allocate memory", "CUDA error", "cuDNN error", "CUBLAS_STATUS")
    )


def takes(classifier: models.Model, shape: tuple[int, ...]) -> bool:
    """Whether a classifier, by its checkpoint, takes images of (H, W, C); one that does not say takes all."""
    known = classifier.config.get("image_shape")
    return known is None or tuple(known) == tuple(shape)


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


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
