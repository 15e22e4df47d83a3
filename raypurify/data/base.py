"""What every format of image data has in common: shards, rows, and the error for data that is not as it should be."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raypurify import images
from raypurify.data.view import AS_STORED, Shape, View
from raypurify.storage.published import redacted

NO_LABEL = -1
"""The label of every row of a source without labels."""

SPLIT_NAMES = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
"""What a split's folder or Parquet files are called; the first that exists is taken."""

TEST_SHARE = 6
"""One image in so many is the test split of data that have no split of their own."""


class DataError(ValueError):
    """A file is not what its format asks for. The message names the file, and the offset or row.

    Credentials in URLs are left out of it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


SplitBy = Literal["files", "ids"]
"""Where a split comes from: the data's own files and names, or a hash of the ids."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Rows that one reader can read at random; small and picklable.

    Rows are counted from the shard's own start: 0 to ``rows``. Where rows are ``picked``, only these are counted.
    """

    format: str
    """Full name of the module that reads it (see :mod:`raypurify.data.formats`)."""
    url: str
    """File (or folder root) that holds it: an absolute path or an fsspec URL."""
    key: str
    """The file's name relative to the dataset's root, without ``.gz``: the first part of the rows' ids."""
    rows: int
    first: int = 0
    """Row of the file at which the shard starts: the ids count from the start of the file."""
    picked: NDArray[np.uint32] | None = field(default=None, compare=False)
    """(rows,) which rows these are, counted from ``first``, ascending; None: all from there on."""
    renumbered: tuple[int, ...] | None = None
    """The number that each label of the file stands for; None: itself."""
    row_group: int | None = None
    """Row group of a Parquet file."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Plain values that the format's reader needs besides."""
    view: View = AS_STORED
    crop_seed: int | None = None
    """The seed that the place of each image's crop follows from, with its id; None: the centre."""
    in_colour: bool = False
    """Whether grey images are shown as RGB."""

    @property
    def shows_as_stored(self) -> bool:
        """Whether nothing is done to its images."""
        return not self.view.given and not self.in_colour

    def shown_shape(self, stored: Shape) -> Shape:
        """The shape of an image as it is shown; raises ValueError where it is smaller than the crop."""
        height, width, channels = self.view.shape(stored)
        return height, width, 3 if self.in_colour else channels

    def show(self, stored: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
        """An image as it is shown.

        Args:
            stored: (H, W, C) uint8, C 1 or 3.
            name: its id.

        Raises:
            ValueError: the image is smaller than the crop.
        """
        pixels = self.view.show(stored, None if self.crop_seed is None else f"{self.crop_seed} {name}")
        return np.repeat(pixels, 3, axis=2) if self.in_colour and pixels.shape[2] == 1 else pixels


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Which rows of which files a split is, before a limit; the names of the files do not count."""

    files: str
    """SHA-256 (hex) of the files' content identity."""
    rows: str
    """SHA-256 (hex) of that, and of which rows are taken."""
    split: str
    split_by: SplitBy

    def overlaps(self, other: Origin) -> bool:
        """Whether the two have rows in common, as far as is known: files are compared as wholes."""
        same_kind = self.split_by == other.split_by
        return self.rows == other.rows or (self.files == other.files and (not same_kind or self.split == other.split))


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a dataset resolves to."""

    name: str
    """``digits``, ``mnist``, ``cifar10``, or the last part of the URL's path; and the view, where there is one."""
    split: str
    """``train`` or ``test``."""
    shards: tuple[Shard, ...]
    image_shape: Shape | None
    """Of every image, as it is shown, where the files say so, else None."""
    view: View
    classes: tuple[str, ...] | int
    """Names of the classes, or how many there are where they have no names; 0 without labels."""
    fingerprint: str
    """SHA-256 (hex) of the shards' keys, rows and content identity: the dataset's hash. The place does not count."""
    origin: Origin
    is_attacked: bool = False
    """Whether these are known to be attacked images."""
    skipped: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Files that are no images by their names, as they are counted."""

    @cached_property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def number_of_classes(self) -> int:
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    @property
    def named_classes(self) -> dict[str, list[str]]:
        """``class_names``, where the classes have names."""
        return {} if isinstance(self.classes, int) else {"class_names": list(self.classes)}


def numbered(shard: Shard, rows: NDArray[np.int64]) -> list[str]:
    """Ids of rows that bring none: the shard's key and their numbers."""
    return [f"{shard.key}#{row}" for row in rows]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Decoded rows. ``ids``, ``images`` and ``labels`` are aligned; a rejected row is in none of them."""

    ids: list[str]
    images: NDArray[np.uint8] | list[NDArray[np.uint8]]
    """(N, H, W, C) uint8, C 1 or 3, or N arrays (H, W, C) where their shapes differ."""
    labels: NDArray[np.int64]
    """(N,) int64; ``NO_LABEL`` in every row of a source without labels."""
    rejects: list[dict[str, str]]
    """Images that could not be decoded: id, url, stage, reason (``schema.REJECTS``)."""
    kept: NDArray[np.int64] | None = None
    """(N,) which of the rows that were asked for these are, ascending; None: all."""
    shown: bool = False
    """Whether the images are as the shard shows them, and not as they are stored."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a format finds of a split: a source without its name, split and limit."""

    shards: tuple[Shard, ...]
    image_shape: Shape | None
    classes: tuple[str, ...] | int
    contents: tuple[str, ...]
    """What identifies the content of the files (see ``files.content_identity``), in a fixed order."""
    split_by: SplitBy = "files"
    is_attacked: bool = False
    """Whether these are known to be attacked images."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Files that are no images by their names, as they are counted."""

    @property
    def picked(self) -> bool:
        """Whether the rows are some of those of files, in whose order they are."""
        return any(shard.picked is not None for shard in self.shards)


def check_labels(labels: NDArray[Any], classes: int, *, rows: NDArray[np.int64], url: str) -> NDArray[np.int64]:
    """``labels`` as int64, if all are in [0, classes).

    Args:
        labels: (N,) integers.
        rows: (N,) the rows of the file that they are of, for the message.

    Raises:
        DataError: a label out of range; names the file and the row.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        row = int(wrong[0])
        raise DataError(f"{url}, row {rows[row]}: label {labels[row]} is out of range: expected 0 to {classes - 1}")
    return labels.astype(np.int64)


def digest(name: str) -> bytes:
    """16 bytes of a hash of an id."""
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def in_split(name: str, split: str) -> bool:
    """Whether an image is in the split, by the hash of its id, or of what stands for one."""
    # Orders take the digest's first bytes, so the split takes its last: neither tells of the other.
    is_test = int.from_bytes(digest(name)[8:], "big") % TEST_SHARE == 0
    return is_test == (split == "test")


def decoded(
    contents: Iterable[bytes | NDArray[np.uint8] | Exception],
    *,
    shard: Shard,
    ids: Sequence[str],
    urls: Sequence[str],
    labels: NDArray[np.int64],
) -> Rows:
    """Rows of images, each as the shard shows it.

    Args:
        contents: of each, its encoded bytes, or its pixels (H, W, C), or why it has none: a ValueError is a reject of
            the stage ``decode``, any other of the stage ``read``.
        shard: that they are of.
        ids: of each.
        urls: where each is, for a reject.
        labels: (N,) of each.
    """
    pixels, kept, rejects = [], [], []
    for row, content in enumerate(contents):
        if not isinstance(content, Exception):
            try:
                stored = images.decode(content) if isinstance(content, bytes) else content
                pixels.append(shard.show(stored, ids[row]))
                kept.append(row)
                continue
            except ValueError as error:
                content = error
        is_value = isinstance(content, ValueError)
        reason = str(content) if is_value else f"{type(content).__name__}: {content}"
        reason = "there is no such file" if isinstance(content, FileNotFoundError) else reason
        stage = "decode" if is_value else "read"
        rejects.append({"id": ids[row], "url": urls[row], "stage": stage, "reason": reason})
    same_shape = len({image.shape for image in pixels}) == 1
    return Rows(
        ids=[ids[row] for row in kept],
        images=np.stack(pixels) if same_shape else pixels,
        labels=labels[kept],
        rejects=rejects,
        kept=np.array(kept, np.int64),
        shown=True,
    )


BATCH_PIXELS = 1 << 19
"""Pixels (height times width) of a batch at most, where nobody says otherwise: 668 images of 28x28, 10 of 224x224."""


def batch_size(most: int, pixels: int, shape: tuple[int, ...]) -> int:
    """How many images of a shape (H, W, C) go through networks at once: ``most``, of so many ``pixels`` in all."""
    return max(1, min(most, pixels // max(1, shape[0] * shape[1])))
