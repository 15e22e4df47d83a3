"""Throughput over a run's attempts: how many images a second, when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypurify.report import attempts

BINS = 120
"""How many bins a chart has, over all attempts together."""
POINTS_A_BIN = 4
"""Images are counted when a whole unit is done, so that fewer would show the units' rhythm, not the throughput."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """The time in which an attempt worked on images, or the pause between two."""

    started: datetime
    seconds: float
    rates: tuple[float, ...] = ()
    """Images a second in equal parts of the time; none in a pause."""
    cut_off: int = 0
    """Attempts that began in this pause and left no record."""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """All attempts together."""

    spans: tuple[Span, ...]
    """Attempts, and the pauses between them, in the order of time."""
    seconds: float
    """How long the attempts took, without those that were cut off."""
    rate: float | None
    """Images a second while images were cleaned; None where that was not recorded."""
    attempts: int
    cut_off: int
    """Attempts that left no record of their end."""

    @property
    def drawn(self) -> bool:
        """Whether there is anything to draw."""
        return any(rate > 0 for span in self.spans for rate in span.rates)


def read(run: Mapping[str, Any]) -> Throughput:
    """The throughput of a cleaning.

    Args:
        run: ``run.json``, whose attempts' counts hold ``in`` (images), ``images_per_second`` and ``timeline``: lists of
            seconds since the attempt's start and images done in it, the first of them none, as the work begins. An
            attempt that was cut off holds none of them.
    """
    listed = run.get("attempts", [])
    lengths = [_seconds(attempt) for attempt in listed]
    images, busy = 0.0, 0.0
    for attempt, length in zip(listed, lengths, strict=True):
        done, rate = (attempt["counts"].get(name) for name in ("in", "images_per_second"))
        if done and (rate or length):
            images += done
            busy += done / rate if rate else length or 0.0
    return Throughput(
        spans=_spans(listed, lengths),
        seconds=sum(length or 0.0 for length in lengths),
        rate=images / busy if busy else None,
        attempts=len(listed),
        cut_off=lengths.count(None),
    )


def _spans(listed: Sequence[Mapping[str, Any]], lengths: Sequence[float | None]) -> tuple[Span, ...]:
    total = sum(length or 0.0 for length in lengths)
    timed = [
        (started, length, _timeline(attempt))
        for attempt, length in zip(listed, lengths, strict=True)
        if (started := attempts.time_of(attempt.get("started"))) is not None
    ]
    timed.sort(key=lambda item: item[0])
    spans: list[Span] = []
    end = timed[0][0].timestamp() if timed and timed[0][1] is None else None
    cut_off = 0
    for started, length, timeline in timed:
        if length is None:
            cut_off += 1
            continue
        first, last = _work(timeline, length)
        begin = started.timestamp() + first
        if end is not None and begin > end:
            spans.append(
                Span(started=datetime.fromtimestamp(end, started.tzinfo), seconds=begin - end, cut_off=cut_off)
            )
        if last > first:
            moment = datetime.fromtimestamp(begin, started.tzinfo)
            spans.append(Span(started=moment, seconds=last - first, rates=_rates(timeline, first, last, total)))
        end, cut_off = started.timestamp() + last, 0
    return tuple(spans)


def _work(timeline: NDArray[np.float64], length: float) -> tuple[float, float]:
    """When the work on images began and ended, in seconds since the attempt's start; all of it where none is recorded.

    A timeline that begins with no images begins with the work.
    """
    if len(timeline) < 2 or timeline[0, 1]:
        return 0.0, length
    return float(timeline[0, 0]), float(timeline[-1, 0])


def _rates(timeline: NDArray[np.float64], first: float, last: float, total: float) -> tuple[float, ...]:
    """Images a second in equal parts of an attempt's work; their sum is that of the timeline."""
    if len(timeline) == 0:
        return (0.0,)
    bins = max(1, min(round(BINS * (last - first) / total), len(timeline) // POINTS_A_BIN))
    edges = np.linspace(first, last, bins + 1)
    done = np.interp(edges, *np.vstack([np.zeros(2), timeline]).T)
    return tuple(float(rate) for rate in np.diff(done) / np.diff(edges))


def _timeline(attempt: Mapping[str, Any]) -> NDArray[np.float64]:
    """(N, 2): seconds, which increase, and images done until then, which do not decrease."""
    # A worker whose clock is behind has begun before the attempt did.
    latest = {seconds: images for seconds, images in attempt["counts"].get("timeline", []) if seconds >= 0}
    return np.array([*latest.items()], np.float64).reshape(-1, 2)


def _seconds(attempt: Mapping[str, Any]) -> float | None:
    """How long an attempt took: until its end or, while it goes on, until the last images; None: it was cut off."""
    timeline = _timeline(attempt)
    last = float(timeline[-1, 0]) if len(timeline) else 0.0
    ended = attempts.seconds(attempt)
    return last or None if ended is None else max(ended, last)
