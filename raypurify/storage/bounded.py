"""Streams, tables and sets of names of any length, in bounded memory."""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import tempfile
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import IO, Any, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

T = TypeVar("T")
Result = TypeVar("Result")

SORTED_ROWS = 1 << 14
"""How many records are sorted in memory at a time."""
BLOCK = 1 << 14
"""How many bytes of a spooled span are read at once."""
SPOOLED = 16 << 20
"""Bytes of a file that are kept in memory before it goes to a temporary file."""
GROUP_ROWS, GROUP_BYTES = 1 << 12, 16 << 20
"""Rows, and bytes of large values, after which a row group of a spooled table ends."""
CHUNK = 1 << 16
"""How many digests are looked up at once."""


class Spool:
    """Tuples of strings, numbers and None in a temporary file (in ``TMPDIR``), read as often as wanted."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115

    def close(self) -> None:
        """Remove the file."""
        self.file.close()

    def extend(self, records: Iterable[tuple[Any, ...]]) -> tuple[int, int]:
        """Append records, and return the span of bytes that they take."""
        start = self.file.tell()
        self.file.writelines(json.dumps(record).encode() + b"\n" for record in records)
        self.file.flush()
        return start, self.file.tell()

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[Any, ...]]:
        """The records of a span, or all."""
        stop = self.file.tell() if stop is None else stop
        rest = b""
        while start < stop:
            # pread leaves the position alone: many spans are read in turns.
            block = os.pread(self.file.fileno(), min(BLOCK, stop - start), start)
            start += len(block)
            *lines, rest = (rest + block).split(b"\n")
            yield from (tuple(json.loads(line)) for line in lines)


class TableSpool:
    """Rows of a Parquet file, in row groups of bounded size in a temporary file (in ``TMPDIR``) until it is written."""

    def __init__(self, columns: pa.Schema) -> None:
        self.columns = columns
        self.count = 0
        self.rows: list[dict[str, Any]] = []
        self.size = 0
        self.file = tempfile.SpooledTemporaryFile(SPOOLED)  # noqa: SIM115
        self.parquet = pq.ParquetWriter(self.file, columns, compression="zstd")

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows; none can be appended any more."""
        file = pq.ParquetFile(self.sealed())
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group).to_pylist()

    def append(self, row: dict[str, Any], size: int = 0) -> None:
        """Take a row of about ``size`` bytes, where they are many."""
        self.rows.append(row)
        self.count += 1
        self.size += size
        if len(self.rows) >= GROUP_ROWS or self.size >= GROUP_BYTES:
            self._flush()

    def sealed(self) -> IO[bytes]:
        """The Parquet file; no row can be appended any more."""
        if self.parquet.is_open:
            # A file of no rows has a row group all the same, as write_table gives it one.
            if self.rows or not self.count:
                self._flush()
            self.parquet.close()
        return cast(IO[bytes], self.file)

    def _flush(self) -> None:
        self.parquet.write_table(pa.Table.from_pylist(self.rows, self.columns))
        self.rows, self.size = [], 0


def ordered(records: Iterable[tuple[Any, ...]], *, in_memory: int = SORTED_ROWS) -> Iterator[tuple[Any, ...]]:
    """Tuples of strings, numbers and None in ascending order; more than ``in_memory`` are merged from a temporary file.

    Strings are compared by code points, which is the order of their UTF-8 bytes.
    """
    rest = iter(records)
    chunk = sorted(islice(rest, in_memory))
    if len(chunk) < in_memory:
        yield from chunk
        return
    with closing(Spool()) as spool:
        spans = []
        while chunk:
            spans.append(spool.extend(chunk))
            chunk = sorted(islice(rest, in_memory))
        yield from heapq.merge(*(spool.read(*span) for span in spans))


def concurrently(
    function: Callable[[T], Result],
    items: Iterable[T],
    *,
    at_once: int,
    when: Callable[[T], bool] = lambda item: True,
) -> Iterator[tuple[T, Result | None]]:
    """Each item with ``function(item)``, in order, computed by ``at_once`` threads a little ahead.

    Args:
        when: items for which it is false have None, at once.
    """
    pool = ThreadPoolExecutor(at_once)
    ahead: deque[tuple[T, Future[Result] | None]] = deque()

    def oldest() -> tuple[T, Result | None]:
        item, future = ahead.popleft()
        return item, future.result() if future else None

    try:
        for item in items:
            ahead.append((item, pool.submit(function, item) if when(item) else None))
            while ahead and (len(ahead) > 4 * at_once or ahead[0][1] is None):
                yield oldest()
        while ahead:
            yield oldest()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Digests:
    """64-bit BLAKE2b digests of names, sorted by :meth:`seal`.

    Two names may have one digest, by chance once in 10^5 sets of ten million names: then a name that is not in the set
    is said to be in it.
    """

    def __init__(self) -> None:
        self.values = array("Q")

    def add(self, name: str) -> None:
        """Add a name to a set that is not sealed."""
        self.values.append(_digest(name))

    def update(self, digests: NDArray[np.uint64]) -> None:
        """Add names by their digests."""
        self.values.frombytes(digests.tobytes())

    def seal(self) -> Digests:
        """Sort the set, in place: from now on it can be asked, and not added to."""
        if self.values:
            np.frombuffer(self.values, np.uint64).sort()
        return self

    def __len__(self) -> int:
        return len(self.values)

    def __contains__(self, name: str) -> bool:
        digest = _digest(name)
        index = bisect_left(self.values, digest)
        return index < len(self.values) and self.values[index] == digest

    def holds(self, digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of some names are in this sealed set, by their digests."""
        if not self.values:
            return np.zeros(len(digests), np.bool_)
        values = np.frombuffer(self.values, np.uint64)
        found: NDArray[np.bool_] = values[np.minimum(np.searchsorted(values, digests), len(values) - 1)] == digests
        return found

    def collisions(self, *others: Digests) -> Digests:
        """The names of this sealed set that it holds twice, or that are in another."""
        found = Digests()
        if not self.values:
            return found
        own = np.frombuffer(self.values, np.uint64)
        found.update(own[1:][own[1:] == own[:-1]])
        for other in others:
            for start in range(0, len(own), CHUNK):
                chunk = own[start : start + CHUNK]
                found.update(chunk[other.holds(chunk)])
        return found.seal()


def digests_of(names: Iterable[str]) -> NDArray[np.uint64]:
    """The digest of each name."""
    return np.array([_digest(name) for name in names], np.uint64)


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
