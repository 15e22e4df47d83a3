"""Parquet of images: the layout of Hugging Face's datasets, and our own (see :mod:`raypurify.data.columns`).

A shard is one row group. Without a column ``id`` a row is named by its file and its number in it. Files are told apart
by the names that Hugging Face gives them (``train-00000-of-00001.parquet``); where no file is named after a split, a
sixth of the rows, chosen by a hash of their ids, is the test split (``base.in_split``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypurify import images, storage
from raypurify.data import columns, files
from raypurify.data.base import (
    NO_LABEL,
    SPLIT_NAMES,
    DataError,
    Found,
    Rows,
    Shard,
    check_labels,
    decoded,
    in_split,
    numbered,
)
from raypurify.data.files import File, Place
from raypurify.data.view import Shape

RANK = 3
EXPECTED = "Parquet (*.parquet)"
BATCH = 1024

_kept: dict[tuple[str, str, int | None], pa.Table] = {}
"""Row groups that this process keeps, by file, its version, and number."""
_room = 0
"""Bytes of row groups that this process may keep."""

Tables = list[tuple[str, File]]
"""Key and file of each Parquet file."""


def find(place: Place, split: str) -> Found | None:
    """One shard for each row group of a split's Parquet files, from their footers alone.

    Raises:
        DataError: a file is no Parquet, lacks an image column, or differs from the others in its columns.
    """
    tables = _parquet(place.files)
    for name in (*SPLIT_NAMES[split], "data"):
        if not tables and name in place.folders:
            tables = _parquet(files.list_folder(storage.join(place.url, name))[0], f"{name}/")
            if tables and name != "data":
                return _found(tables)
    return _of_split(tables, split, place.url) if tables else None


def _parquet(listed: list[File], prefix: str = "") -> Tables:
    named = ((file.name.partition("?")[0], file) for file in listed)
    return [(prefix + name, file) for name, file in named if name.endswith(".parquet")]


def _of_split(tables: Tables, split: str, url: str) -> Found:
    """The files that are named after the split, or of files without such names the rows whose hashes are in it."""
    by_name: dict[str, Tables] = {}
    every_name = [name for names in SPLIT_NAMES.values() for name in names]
    for key, file in tables:
        own = next((name for name in every_name if re.match(rf"{name}(?![a-z])", file.name.lower())), "")
        by_name.setdefault(own, []).append((key, file))
    for name in SPLIT_NAMES[split]:
        if name in by_name:
            return _found(by_name[name])
    if any(by_name):
        raise DataError(f"{url}: no Parquet of the {split} split here: the files are named {', '.join(by_name)}")
    found = _found(tables)
    shards = tuple(_picked(found.shards, split, {file.url: file.size for _, file in tables}))
    if not shards:
        raise DataError(f"{tables[0][1].url}: none of its few rows falls into the {split} split")
    return replace(found, shards=shards, split_by="ids")


def _found(tables: Tables) -> Found:
    """All rows of the files."""
    first_url = tables[0][1].url
    shards: list[Shard] = []
    schemas: list[pa.Schema] = []
    reached = 0
    for key, file in tables:
        with _naming(file.url):
            metadata = _metadata(file.url, file.version)
            schemas.append(metadata.schema.to_arrow_schema())
        label = columns.label_column(schemas[-1])
        if label != columns.label_column(schemas[0]):
            raise DataError(f"{file.url}: its label column ({label}) is not that of {first_url}")
        columns.check(file.url, schemas[-1])
        if label is not None:
            reached = max(reached, _classes_reached(file, metadata, label))
        shards += _row_groups(key, file, metadata)
    if not shards:
        raise DataError(f"{first_url}: there are no rows in it")
    if label is not None and not reached:
        raise DataError(f"{first_url}: all labels are negative; leave {label!r} out for images without labels")
    names = columns.class_names(schemas[0])
    count = len(names) or reached
    return Found(
        shards=tuple(replace(shard, extra={**shard.extra, "classes": count}) for shard in shards),
        is_attacked=columns.are_attacked(schemas[0]),
        image_shape=columns.tensor_shape(schemas[0]),
        classes=names or count,
        contents=tuple(files.content_identity(file) for _, file in tables),
    )


def read(shard: Shard, rows: NDArray[np.int64]) -> Rows:
    """Some rows of a row group; only the needed columns are read.

    Raises:
        DataError: the file is damaged, a label is missing or out of range.
    """
    return next(read_parts(shard, [rows]))


def read_parts(shard: Shard, parts: Sequence[NDArray[np.int64]]) -> Iterator[Rows]:
    """Several lists of rows of a row group, one after the other: it is read once, and each list decoded in its turn.

    Raises:
        DataError: the file is damaged, a label is missing or out of range.
    """
    wanted = np.unique(np.concatenate(parts))
    kept = _kept_table(shard)
    table = _read_table(shard, wanted) if kept is None else kept.take(wanted)
    for rows in parts:
        part = table if np.array_equal(rows, wanted) else table.take(np.searchsorted(wanted, rows))
        yield _decoded(part, rows, shard)


def _decoded(table: pa.Table, rows: NDArray[np.int64], shard: Shard) -> Rows:
    label = columns.label_column(table.schema)
    return decoded(
        columns.encoded_images(table),
        shard=shard,
        ids=_ids(table, rows, shard),
        urls=[shard.url] * len(rows),
        labels=_labels(table[label] if label else None, shard, rows),
    )


def _ids(table: pa.Table, rows: NDArray[np.int64], shard: Shard) -> list[str]:
    if "id" in table.column_names:
        return list(table["id"].to_pylist())
    return numbered(shard, shard.first + rows)


def headers(shard: Shard, rows: NDArray[np.int64]) -> list[tuple[str, Shape | None]]:
    """Ids of some rows of a row group, which ascend, and their images' shapes by the headers."""
    table = _read_table(shard, rows)
    contents = columns.encoded_images(table)
    shapes = [images.shape_by_header(content) if isinstance(content, bytes) else None for content in contents]
    return list(zip(_ids(table, rows, shard), shapes, strict=True))


def labels(shard: Shard, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels of some rows of a row group, from that column alone.

    Raises:
        DataError: a label is missing or out of range.
    """
    every_row = np.arange(_row_group_rows(shard))
    return _labels(_column(shard, columns.label_column), shard, every_row)[rows]


def ids(shard: Shard, rows: NDArray[np.int64]) -> list[str]:
    """Ids of some rows of a row group: its column ``id``, or the file's name and their numbers."""
    own = own_ids(shard)
    return numbered(shard, shard.first + rows) if own is None else own.take(rows).to_pylist()


def own_ids(shard: Shard) -> pa.ChunkedArray | None:
    """The column ``id`` of a row group, where there is one."""
    return _column(shard, lambda schema: "id" if "id" in schema.names else None)


def _row_group_rows(shard: Shard) -> int:
    metadata = _metadata(shard.url, shard.extra["version"])
    return int(metadata.row_group(shard.row_group).num_rows)


def _column(shard: Shard, choose: Callable[[pa.Schema], str | None]) -> pa.ChunkedArray | None:
    metadata = _metadata(shard.url, shard.extra["version"])
    name = choose(metadata.schema.to_arrow_schema())
    if name is None:
        return None
    column = _read_column(shard.url, shard.extra["version"], name)
    return column.slice(shard.first, _row_group_rows(shard))


@lru_cache(maxsize=32)
def _read_column(url: str, version: str, name: str) -> pa.ChunkedArray:
    with _naming(url), files.open_file(url) as opened:
        return pq.ParquetFile(opened, metadata=_metadata(url, version)).read(columns=[name])[name]


def _picked(shards: Sequence[Shard], split: str, sizes: Mapping[str, int]) -> Iterator[Shard]:
    """The rows of each shard that the hashes of their ids put into the split.

    Args:
        sizes: bytes of each file. Without ids, they and a row's number in the file stand for its id.
    """
    for shard in shards:
        own = own_ids(shard)
        # By the file's size in the place of its name: a file that is renamed keeps its split.
        numbers = range(shard.first, shard.first + shard.rows)
        ids = [f"{sizes[shard.url]}#{row}" for row in numbers] if own is None else own.to_pylist()
        picked = np.flatnonzero([in_split(str(name), split) for name in ids]).astype(np.uint32)
        if len(picked):
            yield replace(shard, rows=len(picked), picked=picked)


@lru_cache(maxsize=64)
def _metadata(url: str, version: str) -> pq.FileMetaData:
    # The version keeps the footer of a file that was written anew apart from the old one.
    with files.open_file(url) as file:
        return pq.ParquetFile(file).metadata


@contextmanager
def _naming(url: str) -> Iterator[None]:
    try:
        with files.naming(url):
            yield
    except pa.ArrowException as error:
        raise DataError(f"{url}: cannot be read: {error}") from error


def _row_groups(key: str, file: File, metadata: pq.FileMetaData) -> list[Shard]:
    shards, first = [], 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if rows:
            extra = {"version": file.version}
            shards.append(
                Shard(format=__name__, url=file.url, key=key, rows=rows, first=first, row_group=group, extra=extra)
            )
        first += rows
    return shards


def _classes_reached(file: File, metadata: pq.FileMetaData, label: str) -> int:
    """One more than the largest label: from the footer's statistics, or else from the column."""
    index = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == label)
    largest = NO_LABEL
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(index).statistics
        if statistics is None or not statistics.has_min_max:
            column = _read_column(file.url, file.version, label)
            return int(np.max(column.drop_null().to_numpy(), initial=NO_LABEL)) + 1
        largest = max(largest, statistics.max)
    return int(largest) + 1


def keep_row_groups(room: int) -> None:
    """Let this process keep the row groups that it reads first, up to ``room`` bytes, for whoever reads them again.

    With 0 it lets go of those that it kept.
    """
    global _room
    _room = room
    if not room:
        _kept.clear()


def _kept_table(shard: Shard) -> pa.Table | None:
    """The needed columns of a whole row group, where this process keeps it."""
    key = shard.url, shard.extra["version"], shard.row_group
    if _room and key not in _kept:
        group = _metadata(shard.url, shard.extra["version"]).row_group(shard.row_group)
        if group.total_byte_size + sum(table.nbytes for table in _kept.values()) <= _room:
            _kept[key] = _read_table(shard, np.arange(group.num_rows))
    return _kept.get(key)


def _read_table(shard: Shard, rows: NDArray[np.int64]) -> pa.Table:
    """The needed columns of some rows, which ascend."""
    with _naming(f"{shard.url}, row group {shard.row_group}"):
        metadata = _metadata(shard.url, shard.extra["version"])
        schema = metadata.schema.to_arrow_schema()
        with files.open_file(shard.url) as opened:
            file = pq.ParquetFile(opened, metadata=metadata, pre_buffer=not storage.is_local(shard.url))
            batches, seen = [], 0
            needed = columns.needed(schema)
            for batch in file.iter_batches(BATCH, row_groups=[shard.row_group], columns=needed, use_threads=False):
                here = rows[slice(*np.searchsorted(rows, [seen, seen + len(batch)]))] - seen
                # A slice needs no copy, but holds the whole batch: it does where most of the batch is taken.
                run = 0 < len(batch) <= 2 * len(here) and here[-1] - here[0] == len(here) - 1
                batches.append(batch.slice(here[0], len(here)) if run else batch.take(here))
                seen += len(batch)
                if not len(rows) or seen > rows[-1]:
                    break
            return pa.Table.from_batches(batches)


def _labels(column: pa.ChunkedArray | None, shard: Shard, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels of some rows, in whose order the column is; None: there is no such column."""
    if column is None:
        return np.full(len(rows), NO_LABEL, np.int64)
    if column.null_count:
        row = shard.first + int(rows[np.flatnonzero(column.is_null().to_numpy())[0]])
        raise DataError(f"{shard.url}, row {row}: the label is null; leave the column out for images without")
    return check_labels(column.to_numpy(), shard.extra["classes"], rows=shard.first + rows, url=shard.url)
