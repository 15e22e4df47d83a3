"""A folder of class folders, with image files in them at any depth: ``cats/a.png``, ``train/dogs/2024/b.jpg``.

Where the root has a folder ``train`` or ``test`` (or ``validation``, ``valid``, ``val``), the class folders are in
there. Else a sixth of the images, chosen by a hash of their ids, is the test split (``base.in_split``). The rows' order
is by a hash of their ids too: the first rows, and each shard, hold all classes; it does not depend on the place.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from typing import cast

import numpy as np
from fsspec import AbstractFileSystem
from numpy.typing import NDArray

from raypurify import images, storage
from raypurify.data import files
from raypurify.data.base import SPLIT_NAMES, DataError, Found, Rows, Shard, SplitBy, decoded, digest, in_split
from raypurify.data.files import File, Place
from raypurify.data.view import Shape
from raypurify.storage import retries

RANK = 5
EXPECTED = "a folder of class folders with images"
SUFFIXES = tuple(f".{extension}" for extension in (*images.EXTENSIONS, "gif", "ppm", "pgm"))
OUTSIDE = "outside the class folders"
"""What images are counted as that are in no class folder, or in one that is hidden."""
SHARD_ROWS = 1024
HEADER = 128 * 2**10
"""Bytes at the beginning of a file that are read for its header: EXIF and a colour profile may stand before it."""


def find(place: Place, split: str) -> Found | None:
    """Shards of at most ``SHARD_ROWS`` images, from the listing alone.

    Raises:
        DataError: there are folders of splits, but none for this one.
    """
    if not place.is_folder:
        return None
    root, folders = place.url, place.folders
    split_by: SplitBy = "files"
    skipped: Counter[str] = Counter()
    present = {key: next((name for name in names if name in folders), None) for key, names in SPLIT_NAMES.items()}
    if any(present.values()):
        chosen = present[split]
        if chosen is None:
            raise DataError(f"{root}: expected a folder {' or '.join(SPLIT_NAMES[split])}, got the folders {folders}")
        parts = [files.list_folder(storage.join(root, part)) for part in present.values() if part]
        classes = sorted({name for _, folders in parts for name in folders})
        listed = [(f"{chosen}/{key}", file) for key, file in _images_under(storage.join(root, chosen), skipped)]
        label_part = 1
    else:
        classes, label_part, split_by = sorted(folders), 0, "ids"
        listed = list(_images_under(root, skipped))
    numbers = {name: number for number, name in enumerate(classes)}
    found = [(key, file) for key, file in listed if key.split("/")[label_part] in numbers]
    skipped.update(dict.fromkeys([OUTSIDE], len(listed) - len(found)) if len(found) < len(listed) else {})
    listed = found if split_by == "files" else [(key, file) for key, file in found if in_split(key, split)]
    if not listed and found:
        raise DataError(
            f"{root}: none of its {len(found)} images is in the {split} split: a sixth of them, by a hash of their "
            f"names, is the test split. Put the class folders into a folder {split}"
        )
    if not listed:
        return None
    listed.sort(key=lambda entry: digest(entry[0]))
    labelled = [(key, numbers[key.split("/")[label_part]]) for key, _ in listed]
    identity = hashlib.sha256(repr([(key, file.size, file.etag) for key, file in listed]).encode()).hexdigest()
    return Found(
        shards=tuple(_shards(root, labelled)),
        image_shape=None,
        classes=tuple(classes),
        contents=(identity,),
        split_by=split_by,
        skipped=skipped,
    )


def read(shard: Shard, rows: NDArray[np.int64]) -> Rows:
    """Read and decode some of a shard's files. A file that is gone or refused is rejected at the stage ``read``."""
    keys = ids(shard, rows)
    return decoded(
        _contents(shard.url, keys),
        shard=shard,
        ids=keys,
        urls=[storage.join(shard.url, key) for key in keys],
        labels=labels(shard, rows),
    )


def headers(shard: Shard, rows: NDArray[np.int64]) -> list[tuple[str, Shape | None]]:
    """Ids of some of a shard's files, and their images' shapes by the headers."""
    keys = ids(shard, rows)
    heads = _ranges(shard.url, keys, 0, HEADER)
    shapes = [images.shape_by_header(head) if isinstance(head, bytes) else None for head in heads]
    return list(zip(keys, shapes, strict=True))


def ids(shard: Shard, rows: NDArray[np.int64]) -> list[str]:
    """Ids of some of a shard's files: their places below the folder."""
    return [shard.extra["keys"][row] for row in rows]


def labels(shard: Shard, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels of some of a shard's files."""
    return np.asarray(shard.extra["labels"], np.int64)[rows]


def _images_under(root: str, skipped: Counter[str]) -> list[tuple[str, File]]:
    """Key relative to ``root`` and file of each image at any depth; hidden files and folders are left out.

    Args:
        skipped: counts the files that are no images, by the ends of their names.
    """
    with files.naming(root):
        path, entries = storage.on_store(root, lambda fs, path: (path, fs.find(path, detail=True)))
    prefix = path.rstrip("/") + "/"
    listed = []
    for name, info in entries.items():
        key = name.removeprefix(prefix).lstrip("/")
        if any(part.startswith(".") for part in key.split("/")) or not key or info["type"] == "directory":
            continue
        if key.lower().endswith(SUFFIXES):
            listed.append((key, files.described(storage.join(root, key), info)))
        else:
            skipped[os.path.splitext(key)[1].lower() or "without an extension"] += 1
    return listed


def _shards(root: str, labelled: list[tuple[str, int]]) -> Iterator[Shard]:
    for first in range(0, len(labelled), SHARD_ROWS):
        keys, labels = zip(*labelled[first : first + SHARD_ROWS], strict=True)
        extra = {"keys": keys, "labels": labels}
        yield Shard(format=__name__, url=root, key=keys[0], rows=len(keys), extra=extra)


def _ranges(root: str, keys: list[str], start: int | None, stop: int | None) -> list[bytes | Exception]:
    """Those bytes of each file, or the error that tells that they cannot be had."""

    def read(fs: AbstractFileSystem, path: str) -> list[bytes | Exception]:
        paths = [storage.join(path, key) for key in keys]
        # Not cat(), which takes a name with [ or * in it for a pattern.
        found = cast(
            list[bytes | Exception],
            fs.cat_ranges(paths, [start] * len(paths), [stop] * len(paths), on_error="return"),
        )
        for content in found:
            if isinstance(content, Exception) and retries.is_transient(content):
                raise content
        return found

    with files.naming(root):
        return storage.on_store(root, read)


def _contents(root: str, keys: list[str]) -> list[bytes | Exception]:
    """Each file's bytes, or the error that tells that this one cannot be had. Whatever else fails is raised."""
    contents = _ranges(root, keys, None, None)
    with files.naming(root):
        for content in contents:
            if isinstance(content, Exception) and not isinstance(content, (FileNotFoundError, PermissionError)):
                raise content
    return contents
