from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from raypurify.data import open_source, read_rows


def test_digits_are_all_there_once() -> None:
    train, test = (open_source("digits", split=split) for split in ("train", "test"))
    assert (train.rows, test.rows, train.image_shape, train.classes) == (1500, 297, (28, 28, 1), 10)
    assert train.fingerprint != test.fingerprint
    parts = [read_rows(source.shards[0], 0, source.rows) for source in (train, test)]
    numbers = [int(key.removeprefix("digits#")) for part in parts for key in part.ids]
    assert sorted(numbers) == list(range(1797))
    labels = np.concatenate([part.labels for part in parts])
    np.testing.assert_array_equal(labels, load_digits().target[numbers])


def test_digits_look_like_the_originals() -> None:
    source = open_source("digits", split="test")
    rows = read_rows(source.shards[0], 100, 150)
    images = np.asarray(rows.images)
    assert (images.shape, images.dtype) == ((50, 28, 28, 1), np.uint8)
    assert not images[:, :4].any()
    assert not images[:, :, -4:].any()
    originals = load_digits().images[[int(key.removeprefix("digits#")) for key in rows.ids]] * (255 / 16)
    # Averaged over blocks of 5x5, the 20x20 pixels in the middle are the 8x8 averaged over 2x2.
    coarse = images[:, 4:24, 4:24, 0].reshape(50, 4, 5, 4, 5).mean((2, 4))
    np.testing.assert_allclose(coarse, originals.reshape(50, 4, 2, 4, 2).mean((2, 4)), atol=30)


def test_a_limit_is_a_prefix() -> None:
    source = open_source("digits", split="train", limit=30)
    whole = open_source("digits", split="train")
    assert source.rows == 30
    assert read_rows(source.shards[0], 0, 30).ids == read_rows(whole.shards[0], 0, 30).ids
