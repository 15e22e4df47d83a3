"""Rows picked from a source: by their numbers, and spread over its classes."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from raypurify.data import Source, files, labels_of, narrowed, open_source, read_rows, spread


def ids_of(source: Source) -> list[str]:
    return [name for shard in source.shards for name in read_rows(shard, 0, shard.rows).ids]


def test_narrowed_sources_hold_the_rows_that_were_picked() -> None:
    source = open_source("digits", split="train")
    rows = np.array([0, 3, 700, 1499])
    some = narrowed(source, rows)
    assert ids_of(some) == [ids_of(source)[row] for row in rows]
    assert labels_of(some).tolist() == labels_of(source)[rows].tolist()
    assert ids_of(narrowed(some, np.array([1, 2]))) == ids_of(some)[1:3]
    assert narrowed(source, rows[:0]).rows == 0


@pytest.mark.parametrize("count", [0, 1, 10, 99, 990, 1000])
def test_a_spread_holds_each_class_by_its_share(count: int) -> None:
    labels = np.repeat(np.arange(10), 100)
    rows = spread(labels, count, seed=1)
    assert len(set(rows.tolist())) == len(rows) == count
    assert sorted(rows.tolist()) == rows.tolist()
    counts = np.bincount(labels[rows], minlength=10)
    assert np.abs(counts - count / 10).max() <= 1
    assert count in (0, 1000) or rows.tolist() != spread(labels, count, seed=2).tolist()
    assert rows.tolist() == spread(labels, count, seed=1).tolist()


@pytest.mark.parametrize("size", [1, 700, 70_000])
def test_records_come_in_the_order_asked_for(tmp_path: Path, size: int) -> None:
    records: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (300, size), dtype=np.uint8)
    rows = np.random.default_rng(1).permutation(300)[:120]
    path = tmp_path / "records"
    path.write_bytes(b"head" + records.tobytes())
    np.testing.assert_array_equal(files.read_records(str(path), 4, size, rows), records[rows])
    assert files.read_records(str(path), 4, size, rows[:0]).shape == (0, size)
