"""A training's epochs: the scores of the held-out images, and which epoch's network is where."""

from __future__ import annotations

from raypurify.report import figures
from raypurify.report.sections import Page, Section


def section(page: Page) -> Section | None:
    """A curve for each score, and a row for each epoch."""
    trained = page.trained
    if trained is None:
        return None
    scores = {name: [epoch[name] for epoch in trained.epochs if name in epoch] for name in trained.scores}
    numbers = [int(epoch["epoch"]) for epoch in trained.epochs]
    svg = figures.score_curves(numbers, scores, best=trained.best, name="scores") if scores else None
    return page.section("epochs", "Epochs", svg=svg, scores=scores)
