"""Rows of a source's shards: images, labels and ids, by whichever format reads them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypurify.data import download
from raypurify.data.base import DataError, Rows, Shard, Source, decoded
from raypurify.data.view import Shape

FILES_AT_ONCE = 16
"""Files whose labels are read at once."""

IMAGES_TRIED = 100
"""Images that are tried for one that can be decoded."""

HEADERS = 256
"""Images whose headers are read at most, to tell whether all are of one shape."""

SHARDS_TRIED = 4
"""Shards that they are in, where the source has more images."""


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
    format = _format(shard)
    numbers = [rows_of_file(shard, rows) for rows in parts]
    if hasattr(format, "read_parts"):
        parts_read = format.read_parts(shard, numbers)
    else:
        parts_read = (format.read(shard, rows) for rows in numbers)
    for rows in parts_read:
        if not shard.shows_as_stored and not rows.shown:
            rows = _shown(rows, shard)
        yield rows if shard.renumbered is None else replace(rows, labels=_renumbered(shard, rows.labels))


def _shown(rows: Rows, shard: Shard) -> Rows:
    """Rows, as they are stored, as the shard shows them; an image that is smaller than the crop is rejected."""
    shown = decoded(rows.images, shard=shard, ids=rows.ids, urls=[shard.url] * len(rows.ids), labels=rows.labels)
    assert shown.kept is not None
    if rows.kept is None:
        return shown
    # Rejects come in the order of the rows that were asked for.
    before = np.delete(np.arange(len(rows.ids) + len(rows.rejects)), rows.kept)
    order = np.argsort(np.concatenate([before, np.delete(rows.kept, shown.kept)]))
    rejects = [*rows.rejects, *shown.rejects]
    return replace(shown, kept=rows.kept[shown.kept], rejects=[rejects[place] for place in order])


def labels_of(source: Source) -> NDArray[np.int64]:
    """Label of each row, read without the images where the format allows it.

    Raises:
        DataError: a label is missing or out of range; names the file and the row.
    """

    def read(shards: Sequence[Shard]) -> list[NDArray[np.int64]]:
        return [
            _renumbered(shard, _format(shard).labels(shard, rows_of_file(shard, np.arange(shard.rows))))
            for shard in shards
        ]

    # The shards of one file stay together: its labels are read once.
    by_file = [list(shards) for _, shards in groupby(source.shards, key=lambda shard: shard.url)]
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        parts = [labels for part in pool.map(read, by_file) for labels in part]
    return np.concatenate(parts)


def ids_of(source: Source) -> pa.ChunkedArray | None:
    """The ids that the data bring, as strings; None where they bring none, and an image is called by its place."""
    parts = []
    for shard in source.shards:
        own_ids = getattr(_format(shard), "own_ids", None)
        ids = own_ids(shard) if own_ids else None
        if ids is not None:
            parts.append(ids.take(rows_of_file(shard, np.arange(shard.rows))).combine_chunks().cast(pa.large_string()))
    return pa.chunked_array(parts, pa.large_string()) if parts else None


def names_of(source: Source) -> list[str]:
    """The id of each row, without the images.

    Raises:
        DataError: a format that does not tell.
    """
    names: list[str] = []
    for shard in source.shards:
        ids = getattr(_format(shard), "ids", None)
        if ids is None:
            raise DataError(f"{source.name}: the module {shard.format} names no ids(shard, rows), which is needed here")
        names += ids(shard, rows_of_file(shard, np.arange(shard.rows)))
    return names


def check_ids(source: Source) -> None:
    """Check that no two rows have one id, where the data bring ids of their own.

    Raises:
        DataError: an id that is null, or there twice.
    """
    column = ids_of(source)
    if column is None:
        return
    if column.null_count:
        raise DataError(f"{source.name}: the column 'id' is null in {column.null_count} rows; expected a name for each")
    if pc.count_distinct(column).as_py() < len(column):
        counts = column.value_counts()
        twice = counts.filter(pc.greater(counts.field("counts"), 1))[0].as_py()
        raise DataError(f"{source.name}: {twice['counts']} rows have the id {twice['values']!r}; expected one for each")


def headers_of(source: Source) -> list[tuple[str, Shape]]:
    """Ids and shapes of images, as they are shown, by their headers: of all, or of a sample of a larger source.

    Left out are images whose header does not tell, and those that are smaller than the crop. Empty where the files say
    that all images are of one shape.
    """
    if source.image_shape is not None:
        return []
    count = len(source.shards) if source.rows <= HEADERS else min(SHARDS_TRIED, len(source.shards))
    each = source.rows if source.rows <= HEADERS else HEADERS // count
    found = []
    for index in np.linspace(0, len(source.shards) - 1, count).astype(int):
        shard = source.shards[index]
        headers = getattr(_format(shard), "headers", None)
        rows = rows_of_file(shard, np.arange(min(shard.rows, each)))
        for name, stored in headers(shard, rows) if headers else ():
            with suppress(ValueError):
                found += [(name, shard.shown_shape(stored))] if stored else []
    return found


def shape_of(source: Source) -> Shape:
    """(H, W, C) of the images, as they are shown: what the files say, or else the first image's that can be decoded.

    Raises:
        DataError: none of the first ``IMAGES_TRIED`` can.
    """
    if source.image_shape is not None:
        return source.image_shape
    rows = [(shard, row) for shard in source.shards for row in range(min(shard.rows, IMAGES_TRIED))][:IMAGES_TRIED]
    for shard, row in rows:
        first = read_rows(shard, row, row + 1)
        if first.ids:
            height, width, channels = first.images[0].shape
            return height, width, channels
    reject = first.rejects[0]
    raise DataError(f"none of the first {len(rows)} images can be decoded; {reject['url']}: {reject['reason']}")


def _format(shard: Shard) -> Any:
    """The module that reads a shard."""
    name = shard.extra.get("download")
    if name:
        # The driver downloaded to its own disk; another node of the cluster does so once for itself.
        download.fetch(name, folder=Path(shard.url).parent)
    return importlib.import_module(shard.format)


def rows_of_file(shard: Shard, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of a shard as its file counts them, from ``shard.first``."""
    return rows if shard.picked is None else shard.picked[rows].astype(np.int64)


def _renumbered(shard: Shard, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    return labels if shard.renumbered is None else np.array(shard.renumbered, np.int64)[labels]
