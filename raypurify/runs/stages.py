"""Seconds that a process has spent on each stage of its units, for ``run.json`` and a cluster's metrics.

The clock is that of the host. A GPU works on while the host goes ahead: there a stage pays for what it waits for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")

STAGES = ("read", "attack", "purify", "classify", "measure", "write")

_spent = dict.fromkeys(STAGES, 0.0)
_entered: list[str] = []
_since = 0.0


@contextmanager
def spending(stage: str) -> Iterator[None]:
    """Count the seconds of the block for one of ``STAGES``; those of a stage inside it count for that one alone.

    A block may not hold a ``yield``. Only one thread of a process may count.
    """
    _turn()
    _entered.append(stage)
    try:
        yield
    finally:
        _turn()
        _entered.pop()


def each(stage: str, items: Iterable[Item]) -> Iterator[Item]:
    """The items; the seconds until each is there count for ``stage``."""
    iterator, end = iter(items), object()
    while True:
        with spending(stage):
            item = next(iterator, end)
        if item is end:
            return
        yield item  # type: ignore[misc]  # mypy does not tell the end from an item


def seconds() -> dict[str, float]:
    """What this process has spent so far, by ``seconds_STAGE``."""
    return {f"seconds_{stage}": spent for stage, spent in _spent.items()}


def since(mark: Mapping[str, float]) -> dict[str, float]:
    """What :func:`seconds` has grown by since it gave ``mark``."""
    return {name: spent - mark[name] for name, spent in seconds().items()}


def _turn() -> None:
    """Count the time until now for the stage that it was spent in."""
    global _since
    now = time.perf_counter()
    if _entered:
        _spent[_entered[-1]] += now - _since
    _since = now
