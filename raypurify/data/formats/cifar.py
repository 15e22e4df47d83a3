"""Folders of CIFAR-10 (https://www.cs.toronto.edu/~kriz/cifar.html): ``data_batch_1.bin`` ... and ``test_batch.bin``.

Or, of the Python version, ``data_batch_1`` ... and ``test_batch``: pickles, which cannot be read at random, and are
brought to the binary version's records once a node, in the cache folder.

A record is a byte of label, then 32x32 pixels of red, of green and of blue, row by row: 3,073 bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raypurify.data import files
from raypurify.data.base import DataError, Found, Rows, Shard, check_labels, numbered
from raypurify.data.files import File, Place
from raypurify.data.formats import _cifar_pickle

RANK = 2
EXPECTED = "CIFAR-10's batches"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (32, 32, 3)
RECORD = 1 + 32 * 32 * 3

_BATCH = re.compile(r"(?:data_batch_(\d+)|test_batch)(?:\.bin)?")


def find(place: Place, split: str) -> Found | None:
    """A shard for each batch of the split; those of the Python version are brought to records first.

    Raises:
        DataError: a batch is missing, truncated, or holds something that the official files don't.
    """
    by_name = {file.name: file for file in place.files} if place.is_folder else {}
    listed = [by_name[name] for name in batches(by_name, split, url=place.url)]
    return found([_shard(file) for file in listed], listed) if listed else None


def _shard(file: File) -> Shard:
    shard = Shard(format=__name__, url=file.url, key=file.name, rows=0, extra={"version": file.version})
    records = _records(shard)
    return replace(shard, rows=count(file if records == file.url else files.stat(records), url=file.url))


def is_batch(name: str) -> bool:
    return _BATCH.fullmatch(name) is not None


def is_binary(name: str) -> bool:
    """Whether a batch is of the binary version."""
    return name.endswith(".bin")


def batches(names: Iterable[str], split: str, *, url: str) -> list[str]:
    """The batches of a split among the names of files, in order: the binary version's, or else the Python version's.

    Raises:
        DataError: a number is missing between the first training batch and the last.
    """
    for binary in (True, False):
        matches = [match for match in map(_BATCH.fullmatch, names) if match and is_binary(match[0]) == binary]
        training = {int(match[1]): match[0] for match in matches if match[1]}
        test = [match[0] for match in matches if not match[1]]
        of_split = test if split == "test" else _in_order(training, url)
        if of_split:
            return of_split
    return []


def _in_order(training: Mapping[int, str], url: str) -> list[str]:
    missing = set(range(1, max(training, default=0) + 1)) - set(training)
    if missing:
        raise DataError(f"{url}: batch {min(missing)} of the training data is missing; there are {sorted(training)}")
    return [training[number] for number in sorted(training)]


def found(shards: Iterable[Shard], batches: Iterable[File]) -> Found:
    contents = tuple(files.content_identity(batch) for batch in batches)
    return Found(shards=tuple(shards), image_shape=SHAPE, classes=CLASSES, contents=contents)


def count(records: File | None, *, url: str) -> int:
    """Records in a file of them.

    Args:
        url: the file's name in messages.

    Raises:
        DataError: its size is no multiple of a record's, or zero.
    """
    size = records.size if records else 0
    rows, rest = divmod(size, RECORD)
    if rest or not rows:
        raise DataError(
            f"{url}: truncated: a record has {RECORD} bytes, the file ends at offset {size}, which is "
            f"{rest} bytes into row {rows}; fetch it again"
        )
    return rows


def read(shard: Shard, rows: NDArray[np.int64]) -> Rows:
    return read_records(_records(shard), shard, rows)


def labels(shard: Shard, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return read_labels(_records(shard), shard)[rows]


def _records(shard: Shard) -> str:
    """The file of records that a batch is, or is brought to."""
    return shard.url if is_binary(shard.key) else files.unpacked(shard.url, shard.extra["version"], write_records)


def write_records(url: str, path: Path) -> None:
    """Write the pickled batch at ``url`` as records."""
    with files.open_file(url) as stream:
        path.write_bytes(_cifar_pickle.records(stream, url))


def read_records(path: str, shard: Shard, rows: NDArray[np.int64]) -> Rows:
    """Some rows of a shard whose records are in the file ``path``, by their offsets."""
    records = files.read_records(path, 0, RECORD, rows)
    pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Rows(
        ids=ids(shard, rows),
        images=np.ascontiguousarray(pixels),
        labels=check_labels(records[:, 0], len(CLASSES), rows=rows, url=shard.url),
        rejects=[],
    )


ids = numbered


def read_labels(path: str, shard: Shard) -> NDArray[np.int64]:
    """Labels of all records in the file ``path``."""
    file = files.stat(path)
    if file is None:
        raise DataError(f"{path}: there is no such file")
    return _labels(path, file.version, file.size // RECORD, shard.url)


@lru_cache(maxsize=8)
def _labels(path: str, version: str, count: int, url: str) -> NDArray[np.int64]:
    # Labels lie between the images, so that all is read for them; the version keeps files that differ apart.
    rows = np.arange(count)
    return check_labels(files.read_records(path, 0, RECORD, rows)[:, 0], len(CLASSES), rows=rows, url=url)
