"""What a page is made of: what the run wrote, and sections, each with a module and a template of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raypurify.report import formats, templates
from raypurify.report.cells import Row
from raypurify.report.tables import Table, read_tables
from raypurify.runs import failures


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page."""

    id: str
    """The ``id`` of the section's element, unique in the page: links lead to it."""
    title: str
    """The section's title in the page's contents; empty for a section that is not in them."""
    html: str
    """The section's elements. Values in them are escaped, and they load nothing from the network."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training wrote of its epochs and its data."""

    curve: pa.Table
    """Of the schema ``STEPS``."""
    metrics: Mapping[str, Any]
    """Of the last epoch's model, ``metrics.json``; it may lack anything."""
    classes: pa.Table
    """Of the schema ``CLASSES``; empty where it is not there."""

    @functools.cached_property
    def epochs(self) -> list[dict[str, float]]:
        """Of each epoch its number from 1, its mean loss, its median speed, and the scores of the held-out images."""
        epoch, loss, speed = (self.curve[name].to_numpy() for name in ("epoch", "loss", "images_per_second"))
        scores = self.metrics.get("validation") or []
        return [
            {
                "epoch": int(number) + 1,
                "loss": float(loss[epoch == number].mean()),
                "images_per_second": float(np.median(speed[epoch == number])),
                **(scores[number] if number < len(scores) else {}),
            }
            for number in np.unique(epoch)
        ]

    @property
    def scores(self) -> list[str]:
        """Names of the scores, first that which tells the best epoch."""
        names = [name for name in self.epochs[-1] if name not in ("epoch", "loss", "images_per_second")]
        return sorted(names, key=lambda name: name != self.metrics.get("criterion"))

    @property
    def best(self) -> int | None:
        """The epoch with the highest score."""
        return self.metrics.get("best")


NAME = 24
"""Characters of a class's name that are shown."""


def naming(run: Mapping[str, Any]) -> Callable[[int], str]:
    """What a class is called, by its number, in the run of this ``run.json``."""
    names: Sequence[str] = ()
    for attempt in run.get("attempts", []):
        names = attempt.get("counts", {}).get("class_names") or names

    def named(number: int) -> str:
        if not 0 <= number < len(names):
            return str(number)
        return failures.shortened(formats.visible(names[number]), NAME)

    return named


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a run wrote. Names in it are not yet escaped; credentials are not in them."""

    rows: list[Row]
    """The rows of the summary."""
    schema: pa.Schema
    """The schema of the summary. :func:`raypurify.runs.schema.shown` tells how its metrics are shown."""
    samples: pa.Table
    """The table of samples, of the schema ``SAMPLES``."""
    rejects: pa.Table
    """The table of rejects, of the schema ``REJECTS``."""
    run: Mapping[str, Any]
    """What ``run.json`` holds; it may lack anything."""
    curves: Mapping[str, pa.Table]
    """Tables of the schema ``STEPS``, by the trainings' names."""
    confusion: pa.Table
    """The table of predictions by label, of the schema ``CONFUSION``."""
    trained: Trained | None = None
    """Where the run is a training."""

    @functools.cached_property
    def tables(self) -> list[Table]:
        """The rows grouped by setting and attack."""
        return read_tables(self.rows)

    @functools.cached_property
    def class_name(self) -> Callable[[int], str]:
        """What a class is called, by its number: by its name, where the data name their classes."""
        return naming(self.run)

    @functools.cached_property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(row["dataset"] for row in self.rows))

    def section(self, id: str, title: str, **values: Any) -> Section:
        """The section that the template ``ID.html.j2`` of this package makes of ``values`` and ``page``."""
        return Section(id=id, title=title, html=templates.fill(f"{id}.html.j2", page=self, **values))
