"""The official data, where RAYPURIFY_DATA names a folder that holds them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from raypurify.data import open_source, read_rows


def needs(name: str) -> None:
    folder = os.environ.get("RAYPURIFY_DATA")
    if not folder:
        pytest.skip("RAYPURIFY_DATA is not set: it names the folder that holds mnist and cifar10")
    if not (Path(folder) / name).exists():
        pytest.skip(f"RAYPURIFY_DATA ({folder}) holds no {name}")


@pytest.mark.parametrize(
    ("split", "rows", "labels", "digest"),
    [
        # SHA-256 of the official files, inflated: train-images-idx3-ubyte and t10k-images-idx3-ubyte.
        ("train", 60000, [5, 0, 4, 1, 9], "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        ("test", 10000, [7, 2, 1, 0, 4], "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    ],
)
def test_mnist(split: str, rows: int, labels: list[int], digest: str) -> None:
    needs("mnist")
    source = open_source("mnist", split=split)
    assert (source.rows, source.image_shape, source.classes) == (rows, (28, 28, 1), 10)
    read = read_rows(source.shards[0], 0, rows)
    assert read.labels[:5].tolist() == labels
    header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (rows, 28, 28))
    assert hashlib.sha256(header + np.asarray(read.images).tobytes()).hexdigest() == digest


@pytest.mark.parametrize(("split", "rows"), [("train", 50000), ("test", 10000)])
def test_cifar10(split: str, rows: int) -> None:
    needs("cifar10")
    source = open_source("cifar10", split=split)
    assert (source.rows, source.image_shape, len(source.classes)) == (rows, (32, 32, 3), 10)
    read = read_rows(source.shards[-1], 0, 200)
    assert np.asarray(read.images).shape == (200, 32, 32, 3)
    assert read.rejects == []
    assert len(Counter(read.labels.tolist())) == 10
