"""What the distributions of CIFAR-10 share (https://www.cs.toronto.edu/~kriz/cifar.html): batches of records.

A record is a byte of label, then 32x32 pixels of red, of green and of blue, row by row: 3,073 bytes. The binary version
holds them as such; the Python version is brought to the same form once a node (see ``cifar_python``).
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from raypurify.data import files
from raypurify.data.base import DataError, Found, Rows, Shard, check_labels
from raypurify.data.files import File

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (32, 32, 3)
PIXELS = 32 * 32 * 3
RECORD = 1 + PIXELS

_BATCH = re.compile(r"(?:data_batch_(?P<number>\d+)|test_batch)(?P<binary>\.bin)?")


def is_batch(name: str, *, binary: bool) -> bool:
    match = _BATCH.fullmatch(name)
    return match is not None and (match["binary"] is not None) == binary


def batches(names: list[str], split: str, *, url: str, binary: bool) -> list[str]:
    """The batches of a split among the names of files, in order; none where there are none.

    Raises:
        DataError: a number is missing between the first training batch and the last.
    """
    matches = [_BATCH.fullmatch(name) for name in names if is_batch(name, binary=binary)]
    if split == "test":
        return [match[0] for match in matches if match and match["number"] is None]
    numbered = {int(match["number"]): match[0] for match in matches if match and match["number"]}
    missing = sorted(set(range(1, max(numbered, default=0) + 1)) - set(numbered))
    if missing:
        raise DataError(f"{url}: batch {missing[0]} of the training data is missing; there are {sorted(numbered)}")
    return [name for _, name in sorted(numbered.items())]


def found(shards: list[Shard], contents: list[str]) -> Found:
    return Found(shards=tuple(shards), image_shape=SHAPE, classes=CLASSES, contents=tuple(contents))


def count(records: File, *, url: str) -> int:
    """Records in a file of them.

    Args:
        url: the file's name in messages.

    Raises:
        DataError: its size is no multiple of a record's, or zero.
    """
    rows, rest = divmod(records.size, RECORD)
    if rest or not rows:
        raise DataError(
            f"{url}: truncated: a record has {RECORD} bytes, the file ends at offset {records.size}, which is "
            f"{rest} bytes into row {rows}; fetch it again"
        )
    return rows


def read_records(path: str, shard: Shard, rows: NDArray[np.int64]) -> Rows:
    """Some rows of a shard whose records are in the file ``path``, by their offsets."""
    records = files.read_records(path, 0, RECORD, rows)
    pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Rows(
        ids=[f"{shard.key}#{row}" for row in rows],
        images=np.ascontiguousarray(pixels),
        labels=check_labels(records[:, 0], len(CLASSES), rows=rows, url=shard.url),
        rejects=[],
    )


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
