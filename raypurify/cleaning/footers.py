"""Runs of rows that a Parquet file is cut into, from its footer alone."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from raypurify.cleaning.reader import is_passing
from raypurify.data import files
from raypurify.data.base import DataError
from raypurify.data.columns import image_column

TAIL = 1 << 16
"""Bytes that are read first of a file's end: most footers are shorter."""

SHORTEST = 12
"""Bytes of the shortest Parquet file: two marks and the length of its footer."""

READINGS = 8
"""How often a row group is read, as long as ``TOGETHER`` allows: to reach a row, what is before it has to be read."""
TOGETHER = 16
"""Runs of a unit, at most: what is done again when it is cut off, and what its accounts hold in memory."""


class Run(NamedTuple):
    """Rows that become one output."""

    first: int
    rows: int
    joins: bool = False
    """Whether it is cleaned in the unit of the run before it, so that their row group is gone through once for both."""


UNREADABLE = [Run(0, 1)]
"""The run of a file that is no Parquet of images, is gone or cannot be read: its reader says why, in one reject."""


def runs(url: str, size: int, *, rows: int, most: int) -> list[Run]:
    """The runs of a file, in order; one of no rows for a file without any.

    A run ends where a row group does, unless the group is longer than a run: such a group is cut evenly, and its runs
    are spread over ``READINGS`` units, or more of ``TOGETHER`` runs.

    Args:
        url: a Parquet file.
        size: its bytes; -1 where that is not known.
        rows: of a run, at most.
        most: bytes of a run, at most, as the footer tells them, but at least one row.

    Raises:
        DataError: as :func:`footer`.
    """
    metadata = footer(url, size)
    if metadata is None or image_column(metadata.schema.to_arrow_schema()) is None:
        return UNREADABLE
    return _cut(metadata, rows, most) or [Run(0, 0)]


def footer(url: str, size: int) -> pq.FileMetaData | None:
    """The footer of a file, or None where none can be read or made out: its reader will say why.

    What is read and what is parsed are apart, so that a network's failure is not taken for a damaged file.

    Raises:
        DataError: the store refuses or does not answer, or this machine is in trouble; for a link, its reader says so.
    """
    try:
        tail = _tail(url, size)
    except DataError as error:
        if is_passing(error, url):
            raise
        return None
    try:
        return pq.read_metadata(pa.BufferReader(tail))
    except (pa.ArrowException, OSError):
        return None


def _tail(url: str, size: int) -> bytes:
    """The end of a file, as far as its footer reaches."""
    if size < 0:
        found = files.stat(url)
        size = found.size if found else 0
    if size < SHORTEST:
        return b""
    tail = files.read_range(url, max(0, size - TAIL), size)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    return files.read_range(url, size - length, size) if len(tail) < length <= size else tail


def _cut(metadata: pq.FileMetaData, rows: int, most: int) -> list[Run]:
    found: list[Run] = []
    first = open_rows = open_bytes = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if open_rows + group.num_rows > rows or open_bytes + group.total_byte_size > most:
            found += _evenly(first, open_rows, open_bytes, rows, most)
            first, open_rows, open_bytes = first + open_rows, 0, 0
        open_rows += group.num_rows
        open_bytes += group.total_byte_size
    return found + _evenly(first, open_rows, open_bytes, rows, most)


def _evenly(first: int, count: int, total: int, rows: int, most: int) -> list[Run]:
    """``count`` rows of ``total`` bytes in runs as equal as can be."""
    parts = min(count, max(-(-count // rows), -(-total // most)))
    edges = [first + count * part // parts for part in range(parts + 1)] if parts else []
    together = min(-(-parts // READINGS), TOGETHER)
    return [
        Run(start, stop - start, joins=number % together > 0) for number, (start, stop) in enumerate(pairwise(edges))
    ]
