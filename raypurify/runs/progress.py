"""Progress for a person at a terminal, and for a log file: a bar in the one, a line now and then in the other."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from raypurify import plugins
from raypurify.runs import log

SECONDS_BETWEEN_LINES = 10.0
RADII = ("eps", "linf_max")
"""Columns of tables that hold lengths on pixels in [0, 1], which 8 bits have in 255ths."""


class Progress:
    """Counts towards a total (0: it is not known), on standard error; of one that is ``passing`` no end is shown."""

    def __init__(self, what: str, *, total: int, unit: str, passing: bool = False) -> None:
        self.what, self.total, self.unit, self.passing = what, total, unit, passing
        self.count, self.note = 0, ""
        self._began = time.time()
        self._printed = time.monotonic()
        self._printed_count = -1
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        if log.is_text() and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),  # as wide as the others leave room for
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=self.passing)
            self._task = self._bar.add_task(self.what, total=self.total or None, rate="", note="")
            self._bar.start()
        return self

    def advance(self, count: int, note: str = "", began: float | None = None) -> None:
        """``count`` more are done.

        Args:
            count: how many.
            note: shown until the next one.
            began: when the work on them began, in seconds of the clock: a start before the first work slows no rate.
        """
        if began is not None:
            self._began = began if self.count == 0 else min(self._began, began)
        self.count += count
        self.note = note
        rate = self._rate()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.count, rate=self._rate_text(rate), note=note)
        elif time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES:
            self._line(rate)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self._printed_count < self.count and not self.passing:
            self._line(self._rate())

    def _rate(self) -> float:
        return self.count / max(time.time() - self._began, 1e-9)

    def _rate_text(self, rate: float) -> str:
        """A rate: two digits of a slow one, so that none is told as 0."""
        return f"{f'{rate:,.0f}' if rate >= 10 else f'{rate:.2g}'} {self.unit}/s"

    def _line(self, rate: float) -> None:
        self._printed, self._printed_count = time.monotonic(), self.count
        left = max(0, self.total - self.count) / rate if rate else 0.0
        note = f", {self.note}" if self.note else ""
        total, left_over = (f"/{self.total:,}", f", {left:,.0f} s left") if self.total else ("", "")
        done = f"{self.what}: {self.count:,}{total} {self.unit}, {self._rate_text(rate)}"
        log.tell(f"{done}{left_over}{note}", stderr=True, **self._figures(rate, left))

    def _figures(self, rate: float, left: float) -> dict[str, float]:
        """The line's figures; what is left, where the total is known."""
        told = {"done": self.count, f"{self.unit}_per_second": round(rate, 3)}
        return {**told, "total": self.total, "seconds_left": round(left, 1)} if self.total else told


def print_table(table: pa.Table) -> None:
    """Print a small table on standard output: radii as people write them, other floats with four digits.

    With JSON each row is an object's ``result``.
    """
    if not log.is_text():
        for row in table.to_pylist():
            log.tell("result", result=row)
        return
    shown = Table()
    for name in table.column_names:
        shown.add_column(name.replace("_", " "))
    for row in table.to_pylist():
        shown.add_row(*(_cell(name, value) for name, value in row.items()))
    Console(width=None if sys.stdout.isatty() else 200).print(shown)


def _cell(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return plugins.readable(str(value))
    return plugins.shown(value) if name in RADII else f"{value:.4f}"
