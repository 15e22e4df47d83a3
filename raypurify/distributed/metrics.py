"""What a job does, as metrics of the Ray cluster, which its Prometheus endpoints export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

from raypurify.runs import stages
from raypurify.storage.published import redacted

COUNTED = {
    "in": ("images", "Images that units of work held"),
    "rejected": ("rejects", "Images that could not be decoded, purified or written"),
    "requests": ("requests", "Requests of actors to object stores"),
    "retries": ("retries", "Requests that were sent again"),
    "right": ("right", "Images that the classifier gets right before an attack, for each attacked cell"),
    "fooled": ("fooled", "Of these, images that it gets wrong after the attack"),
}
"""What is counted of a unit's row: the name of ``raypurify_NAME_total``, and its description."""


class Metrics:
    """The metrics of one run, which the driver counts as its units are done."""

    def __init__(self, output: str, units: int) -> None:
        """``units``: how many are to be done."""
        self.tags = {"run": redacted(output)}
        self.left = units
        self.counters = {
            name: Counter(f"raypurify_{metric}_total", description, ("run",))
            for name, (metric, description) in COUNTED.items()
        }
        self.seconds = Counter("raypurify_seconds_total", "Seconds of actors, by what they went into", ("run", "stage"))
        self.units_left = Gauge("raypurify_units_left", "Units of work that are not done yet", ("run",))
        self.units_left.set(units, self.tags)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a unit: see :meth:`raypurify.jobs.work.UnitWorker.do`."""
        self.left -= 1
        self.units_left.set(self.left, self.tags)
        for name, counter in self.counters.items():
            if row.get(name):
                counter.inc(row[name], self.tags)
        for stage in stages.STAGES:
            if row[f"seconds_{stage}"] > 0:
                self.seconds.inc(row[f"seconds_{stage}"], {**self.tags, "stage": stage})
