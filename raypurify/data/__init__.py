"""Image datasets by name or URL, read at random by runs of rows: no Ray, and no images held that were not asked for."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypurify.data import download
from raypurify.data.base import NO_LABEL, DataError, Found, Origin, Rows, Shard, Source
from raypurify.data.resolve import resolve

__all__ = [
    "NO_LABEL",
    "DataError",
    "Origin",
    "Rows",
    "Shard",
    "Source",
    "check_ids",
    "labels_of",
    "narrowed",
    "open_source",
    "read_parts",
    "read_rows",
    "shape_of",
    "spread",
    "take_rows",
]

FILES_AT_ONCE = 16
"""Files whose labels are read at once."""

TRIED = 100
"""Images that are tried for one that can be decoded."""


def open_source(
    data: str, *, split: Literal["train", "test"], url: str | None = None, limit: int | None = None
) -> Source:
    """Resolve a dataset. Reads headers, footers and listings (and the small files of labels), no images.

    Args:
        data: ``digits`` (carried by scikit-learn), ``mnist`` or ``cifar10``, or a URL or path (its formats:
            :func:`resolve.resolve`). The named ones are taken from ``url``, else from the folder of that name in
            ``RAYPURIFY_DATA``, else from the cache ``RAYPURIFY_CACHE``, into which they are downloaded if need be.
        split: where the data have no split of their own, see :func:`resolve.resolve` and ``folder``.
        url: where the named dataset is, instead.
        limit: only so many rows: the first, but of Parquet files without a split of their own, which may be sorted, of
            each class its share. The rows of a folder come in an order by a hash.

    Raises:
        ValueError: an unknown split, or a limit under 1.
        DataError: no data there, of no known format, or damaged; the message names the file and the offset or row.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1 row, got {limit}")
    name, found = resolve(data, split, url)
    source = Source(
        name=name,
        split=split,
        shards=found.shards,
        image_shape=found.image_shape,
        classes=found.classes,
        fingerprint="",
        origin=_origin(found, split),
    )
    if limit is not None and limit < source.rows:
        if found.picked:
            source = narrowed(source, spread(labels_of(source), limit, seed=0))
        else:
            source = replace(source, shards=_first_rows(source.shards, limit))
    return replace(source, fingerprint=_fingerprint(source, found.contents))


def shape_of(source: Source) -> tuple[int, int, int]:
    """(H, W, C) of the images: what the files say, or else the first image's that can be decoded.

    Raises:
        DataError: none of the first ``TRIED`` can.
    """
    if source.image_shape is not None:
        return source.image_shape
    rows = [(shard, row) for shard in source.shards for row in range(min(shard.rows, TRIED))][:TRIED]
    for shard, row in rows:
        first = read_rows(shard, row, row + 1)
        if first.ids:
            height, width, channels = first.images[0].shape
            return height, width, channels
    reject = first.rejects[0]
    raise DataError(f"none of the first {len(rows)} images can be decoded; {reject['url']}: {reject['reason']}")


def check_ids(source: Source) -> None:
    """Check that no two rows have one id, where the data bring ids of their own.

    Raises:
        DataError: an id that is null, or there twice.
    """
    parts = []
    for shard in source.shards:
        own_ids = getattr(_reader(shard), "own_ids", None)
        ids = own_ids(shard) if own_ids else None
        if ids is not None:
            parts.append(ids.take(_rows_of_file(shard, np.arange(shard.rows))).combine_chunks().cast(pa.large_string()))
    column = pa.chunked_array(parts, pa.large_string())
    if column.null_count:
        raise DataError(f"{source.name}: the column 'id' is null in {column.null_count} rows; expected a name for each")
    if pc.count_distinct(column).as_py() < len(column):
        counts = column.value_counts()
        twice = counts.filter(pc.greater(counts.field("counts"), 1))[0].as_py()
        raise DataError(f"{source.name}: {twice['counts']} rows have the id {twice['values']!r}; expected one for each")


def read_rows(shard: Shard, start: int, stop: int) -> Rows:
    """Read and decode rows ``start`` to ``stop`` of a shard: see :func:`take_rows`."""
    if not 0 <= start <= stop <= shard.rows:
        raise IndexError(f"{shard.key}: rows {start} to {stop} are not in the shard, which has {shard.rows}")
    return take_rows(shard, np.arange(start, stop))


def take_rows(shard: Shard, rows: NDArray[np.int64]) -> Rows:
    """Read and decode some rows of a shard, counted from the shard's start, in the order given.

    Raises:
        IndexError: the shard has no such rows.
        DataError: the file is damaged; a single image that cannot be decoded is in the result's ``rejects`` instead.
    """
    return next(read_parts(shard, [rows]))


def read_parts(shard: Shard, parts: Sequence[NDArray[np.int64]]) -> Iterator[Rows]:
    """:func:`take_rows` of each part, one after the other; what has to be read as a whole is read once for all."""
    reader = _reader(shard)
    numbers = [_rows_of_file(shard, rows) for rows in parts]
    if hasattr(reader, "read_parts"):
        parts_read = reader.read_parts(shard, numbers)
    else:
        parts_read = (reader.read(shard, rows) for rows in numbers)
    for rows in parts_read:
        yield rows if shard.renumbered is None else replace(rows, labels=_renumbered(shard, rows.labels))


def labels_of(source: Source) -> NDArray[np.int64]:
    """Label of each row, read without the images where the format allows it.

    Raises:
        DataError: a label is missing or out of range; names the file and the row.
    """

    def read(shards: Sequence[Shard]) -> list[NDArray[np.int64]]:
        return [
            _renumbered(shard, _reader(shard).labels(shard)[_rows_of_file(shard, np.arange(shard.rows))])
            for shard in shards
        ]

    # The shards of one file stay together: its labels are read once.
    by_file = [list(shards) for _, shards in groupby(source.shards, key=lambda shard: shard.url)]
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        parts = [labels for part in pool.map(read, by_file) for labels in part]
    return np.concatenate(parts)


def spread(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Pick ``count`` rows by the seed, of each class its share: their numbers, ascending.

    Args:
        labels: (N,) of all rows; N >= count.
    """
    by_class = np.lexsort((np.random.default_rng(seed).random(len(labels)), labels))
    return np.sort(by_class[np.arange(count) * len(labels) // max(count, 1)])


def narrowed(source: Source, rows: NDArray[np.int64]) -> Source:
    """Some of a source's rows, by their numbers, ascending."""
    shards, begin = [], 0
    for shard in source.shards:
        here = rows[slice(*np.searchsorted(rows, [begin, begin + shard.rows]))] - begin
        begin += shard.rows
        if len(here):
            picked = _rows_of_file(shard, here).astype(np.uint32)
            shards.append(replace(shard, rows=len(here), picked=picked))
    return replace(source, shards=tuple(shards))


def _reader(shard: Shard) -> Any:
    """The module that reads a shard."""
    name = shard.extra.get("download")
    if name:
        # The driver downloaded to its own disk; another node of the cluster does so once for itself.
        download.fetch(name, folder=Path(shard.url).parent)
    return importlib.import_module(f"raypurify.data.{shard.format}")


def _rows_of_file(shard: Shard, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of a shard as its file counts them, from ``shard.first``."""
    return rows if shard.picked is None else shard.picked[rows].astype(np.int64)


def _renumbered(shard: Shard, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    return labels if shard.renumbered is None else np.array(shard.renumbered, np.int64)[labels]


def _first_rows(shards: tuple[Shard, ...], limit: int) -> tuple[Shard, ...]:
    kept = []
    for shard in shards:
        if limit <= 0:
            break
        kept.append(replace(shard, rows=min(shard.rows, limit)))
        limit -= shard.rows
    return tuple(kept)


def _taken(shard: Shard) -> tuple[Any, ...]:
    """What tells the rows of a shard from others of its file."""
    picked = () if shard.picked is None else (hashlib.sha256(shard.picked.tobytes()).hexdigest(),)
    return (shard.first, shard.rows, *picked)


def _fingerprint(source: Source, contents: tuple[str, ...]) -> str:
    return _sha256([[(shard.key, *_taken(shard)) for shard in source.shards], contents])


def _origin(found: Found, split: str) -> Origin:
    rows = _sha256([[_taken(shard) for shard in found.shards], found.contents])
    return Origin(files=_sha256(found.contents), rows=rows, split=split, split_by=found.split_by)


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
