"""The verb ``status``: what a run is, and how far. Reads its files alone, and needs neither Ray nor torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from raypurify import plugins
from raypurify.runs.status import Part, Status, status_of

WHAT = ("data", "input", "model", "classifier", "purifier", "attack")
"""Fields of an identity that tell people which run it is."""
REASONS = 10
"""How many reasons for rejects are printed."""
STATES = {
    "finished": "finished",
    "running": "running",
    "interrupted": "not finished, and nobody works on it: give its command again, and it goes on",
    "overwritten": "being removed by --overwrite, or cut off at that: give its command again",
}


@dataclass(frozen=True, kw_only=True)
class StatusArguments:
    """Flags of the verb ``status``."""

    output: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """The --output of the run: a path, or a URL such as s3://bucket/run."""


def main(arguments: StatusArguments) -> None:
    """Say what a run is, how far it is, who works on it, and why inputs were rejected; reads files, and writes none."""
    status = status_of(arguments.output)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in lines(status):
        table.add_row(name, value)
    Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False).print(table)


def lines(status: Status) -> Iterator[tuple[str, str]]:
    """What is printed: names and values."""
    yield "run", f"{status.job or 'unknown'}, {STATES[status.state]}"
    for name in WHAT:
        if status.identity.get(name) is not None:
            yield name, plugins.readable(str(status.identity[name]))
    for part in status.extent.parts:
        yield part.name, _counted(part)
    if status.state != "finished":
        left = status.extent.seconds_left
        yield "time left", "unknown yet" if left is None else f"about {timedelta(seconds=round(left))}, by its own rate"
    yield "lease", _lease(status)
    if status.attempts:
        last = status.attempts[-1]
        ended = f", ended {last['ended']}" if last["ended"] else ""
        yield "attempts", f"{len(status.attempts)}; the last one began {last['started']}{ended}"
    yield "rejected", f"{sum(status.rejects.values()):,}"
    for reason, count in [*status.rejects.items()][:REASONS]:
        yield "", f"{count:,} x {reason}"


def _counted(part: Part) -> str:
    about = "" if part.is_exact else "about "
    return f"{about}{part.done:,} of {'an unknown number' if part.total is None else f'{part.total:,}'}"


def _lease(status: Status) -> str:
    if status.holder is None:
        return "nobody's"
    holder = status.holder
    who = f"attempt {holder.attempt} on host {holder.host} (process {holder.pid}), since {holder.started}"
    if status.good_for is None:
        return f"{who}; last heartbeat {holder.heartbeat}"
    return f"{who}; " + (f"good for {status.good_for:.0f} s" if status.good_for > 0 else "run out")
