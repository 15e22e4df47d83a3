"""The extracted folder of CIFAR-10's binary version: ``data_batch_1.bin`` ... and ``test_batch.bin``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raypurify.data import cifar, files
from raypurify.data.base import Found, Rows, Shard
from raypurify.data.files import File


def find(listed: list[File], split: str, *, url: str) -> Found | None:
    """A shard for each batch of the split, or None where the folder holds none.

    Raises:
        DataError: a batch is missing or truncated.
    """
    by_name = {file.name: file for file in listed}
    names = cifar.batches(list(by_name), split, url=url, binary=True)
    if not names:
        return None
    shards = []
    for name in names:
        file = by_name[name]
        rows = cifar.count(file, url=file.url)
        shards.append(Shard(format="cifar_binary", url=file.url, key=name, rows=rows))
    return cifar.found(shards, [files.content_identity(by_name[name]) for name in names])


def read(shard: Shard, rows: NDArray[np.int64]) -> Rows:
    return cifar.read_records(shard.url, shard, rows)


def labels(shard: Shard) -> NDArray[np.int64]:
    return cifar.read_labels(shard.url, shard)
