"""Streams of any length in bounded memory: sorted, kept for another pass, mapped by several threads."""

from __future__ import annotations

import heapq
import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import IO, Any, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

Item = TypeVar("Item")
Result = TypeVar("Result")

RUN = 1 << 14
"""Records that are sorted in memory at a time."""
BLOCK = 1 << 14
"""Bytes that are read at once of a spooled run."""
SPOOLED = 16 << 20
"""Bytes of a file that are kept in memory before it goes to a temporary file."""
GROUP_ROWS, GROUP_BYTES = 1 << 12, 16 << 20
"""Rows, and bytes of large values, after which a row group of a spooled table ends."""


class Spool:
    """Tuples of strings, numbers and None in a temporary file (in ``TMPDIR``), read as often as wanted."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def extend(self, records: Iterable[tuple[Any, ...]]) -> tuple[int, int]:
        """Append records; says the span of bytes that they take."""
        start = self.file.tell()
        self.file.writelines(json.dumps(record).encode() + b"\n" for record in records)
        self.file.flush()
        return start, self.file.tell()

    def is_empty(self) -> bool:
        """Whether there are no records."""
        return self.file.tell() == 0

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
        self._seal()
        file = pq.ParquetFile(self.file)
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
        self._seal()
        return cast(IO[bytes], self.file)

    def _flush(self) -> None:
        self.parquet.write_table(pa.Table.from_pylist(self.rows, self.columns))
        self.rows, self.size = [], 0

    def _seal(self) -> None:
        if self.parquet.is_open:
            # A file of no rows has a row group all the same, as write_table gives it one.
            if self.rows or not self.count:
                self._flush()
            self.parquet.close()


def ordered(records: Iterable[tuple[Any, ...]], *, run: int = RUN) -> Iterator[tuple[Any, ...]]:
    """Tuples of strings, numbers and None in ascending order; more than ``run`` are merged from a temporary file.

    Strings are compared by code points, which is the order of their UTF-8 bytes.
    """
    rest = iter(records)
    chunk = sorted(islice(rest, run))
    if len(chunk) < run:
        yield from chunk
        return
    with Spool() as spool:
        spans = []
        while chunk:
            spans.append(spool.extend(chunk))
            chunk = sorted(islice(rest, run))
        yield from heapq.merge(*(spool.read(*span) for span in spans))


def concurrently(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    at_once: int,
    when: Callable[[Item], bool] = lambda item: True,
) -> Iterator[tuple[Item, Result | None]]:
    """Each item with ``function(item)``, in order, computed by ``at_once`` threads a little ahead.

    Args:
        when: items for which it is false have None, at once.
    """

    def resolved(item: Item, future: Future[Result] | None) -> tuple[Item, Result | None]:
        return item, None if future is None else future.result()

    pool = ThreadPoolExecutor(at_once)
    ahead: deque[tuple[Item, Future[Result] | None]] = deque()
    try:
        for item in items:
            ahead.append((item, pool.submit(function, item) if when(item) else None))
            while ahead and (len(ahead) > 4 * at_once or ahead[0][1] is None):
                yield resolved(*ahead.popleft())
        while ahead:
            yield resolved(*ahead.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
