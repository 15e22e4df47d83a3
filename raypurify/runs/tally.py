"""What an attempt has done so far, added up unit by unit."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from raypurify.storage import retries

POINTS = 100
"""The least number of points that a timeline keeps, once it has as many."""


class Tally:
    """What an attempt has done so far, for ``run.json``."""

    def __init__(self, mark: dict[str, int]) -> None:
        """``mark``: the requests that this process had made when it began the run."""
        self.mark = mark
        self.sums: Counter[str] = Counter(dict.fromkeys(("in", "out", "rejected", "requests", "retries"), 0))
        self.timeline: list[tuple[float, int]] = []
        self.started, self.first, self.last = time.time(), math.inf, 0.0

    def add(self, row: Mapping[str, Any]) -> None:
        """Add what an actor says of a unit."""
        self.sums.update({name: count for name, count in row.items() if name not in ("started", "ended")})
        self.first, self.last = min(self.first, row["started"]), max(self.last, row["ended"])
        self.timeline[:1] = [(round(self.first - self.started, 1), 0)]
        self.timeline.append((round(self.last - self.started, 1), self.sums["in"]))
        if len(self.timeline) > 2 * POINTS:
            del self.timeline[1:-1:2]

    def shown(self) -> dict[str, Any]:
        """The tally as ``run.json`` has it."""
        seconds = max(self.last - self.first, 1e-9)
        rate = {"images_per_second": round(self.sums["in"] / seconds, 1)} if self.sums["in"] else {}
        own = {name: self.sums[name] + count for name, count in retries.since(self.mark).items()}
        sums = {name: round(count, 3) for name, count in self.sums.items()}  # seconds, and whole numbers
        return {**sums, **own, **rate, "timeline": self.timeline}
