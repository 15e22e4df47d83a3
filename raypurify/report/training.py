"""The loss of the trainings that made the purifiers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from raypurify.report import figures
from raypurify.report.sections import Page, Section
from raypurify.storage.published import redacted


def section(page: Page) -> Section | None:
    """A curve for each training that has a finite loss."""
    drawn = list(curves(page))
    return page.section("training", "Training", curves=drawn) if drawn else None


def curves(page: Page) -> Iterator[dict[str, Any]]:
    """The loss curves of a page, drawn one after the other."""
    for number, (name, table) in enumerate(page.curves.items()):
        if drawn := curve(name, table, number):
            yield drawn


def curve(name: str, table: pa.Table, number: int) -> dict[str, Any] | None:
    """The loss curve of a training, the ``number``-th of a page; None where no loss is finite."""
    table = table.sort_by("step")
    loss = table["loss"].to_numpy()
    finite = loss[np.isfinite(loss)]
    if not len(finite):
        return None
    return {
        "name": redacted(name),
        "steps": len(loss),
        "epochs": len(table["epoch"].unique()),
        "broken": len(loss) - len(finite),
        "first": float(figures.smooth(finite)[0]),
        "last": float(finite[-max(1, len(finite) // 20) :].mean()),
        "rate": float(np.median(table["images_per_second"].to_numpy())),
        "svg": figures.loss_curve(table["step"].to_numpy(), loss, name=f"loss{number}"),
    }
