"""Rows picked from a source: by their numbers, and spread over its classes."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from raypurify import storage
from raypurify.data import DataError, Source, files, labels_of, names_of, narrowed, open_source, read_rows, spread
from raypurify.images import encode_png


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


def of_digits(folder: Path, write_mnist: Any) -> str:
    return "digits"


def of_idx(folder: Path, write_mnist: Any) -> str:
    write_mnist(folder)
    return str(folder)


def of_parquet(folder: Path, write_mnist: Any, names: list[str] | None = None) -> str:
    columns = {
        "image": [encode_png(np.full((4, 4, 1), value, np.uint8)) for value in range(7)],
        "label": [0, 1] * 3 + [0],
    }
    folder.mkdir()
    table = pa.table(columns if names is None else {**columns, "id": names})
    pq.write_table(table, folder / "train.parquet", row_group_size=4)
    return str(folder)


def of_parquet_with_ids(folder: Path, write_mnist: Any) -> str:
    return of_parquet(folder, write_mnist, list("gfedcba"))


def of_files(folder: Path, write_mnist: Any) -> str:
    for number in range(7):
        storage.write_bytes(f"{folder}/train/{number % 2}/{number}.png", encode_png(np.zeros((4, 4, 1), np.uint8)))
    return str(folder)


@pytest.mark.parametrize("make", [of_digits, of_idx, of_parquet, of_parquet_with_ids, of_files])
def test_names_are_told_without_the_images(make: Any, tmp_path: Path, write_mnist: Any) -> None:
    source = open_source(make(tmp_path / "data", write_mnist), split="train")
    assert names_of(source) == ids_of(source)
    some = narrowed(source, np.array([1, 3, 4, 6]))
    assert names_of(some) == ids_of(some) == [ids_of(source)[row] for row in (1, 3, 4, 6)]


def test_a_format_that_tells_no_names_is_named() -> None:
    with pytest.raises(DataError, match=r"the module squares names no ids\(shard, rows\)"):
        names_of(open_source("squares:source", split="train"))


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
