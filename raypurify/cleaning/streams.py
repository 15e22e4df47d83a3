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
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

RUN = 1 << 14
"""Records that are sorted in memory at a time."""
BLOCK = 1 << 14
"""Bytes that are read at once of a spooled run."""


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
