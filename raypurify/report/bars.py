"""Accuracy under each attack, as bars (the paper's Figs. 8-11)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raypurify.report import figures
from raypurify.report.cells import featured
from raypurify.report.sections import Page, Section
from raypurify.report.tables import Comparison, Table
from raypurify.runs.schema import NO_ATTACK


def section(page: Page) -> Section | None:
    """One chart for each setting, classifier, surrogate and featured purifier; each attack at one radius."""
    drawn = list(charts(page))
    several = any(table.others for table in page.tables)
    return page.section("bars", "Accuracy", charts=drawn, several=several) if drawn else None


def charts(page: Page) -> Iterator[dict[str, Any]]:
    """The charts of a page, drawn one after the other."""
    for number, chart in enumerate(chart for table in page.tables for chart in _charts(table)):
        yield {**chart, "svg": figures.accuracy_bars(chart["bars"], name=f"bars{number}")}


def _charts(table: Table) -> Iterator[dict[str, Any]]:
    targets: dict[tuple[Any, ...], list[Comparison]] = {}
    for comparison in table.shown:
        key = comparison.row["dataset"], comparison.row["classifier"], comparison.surrogate
        targets.setdefault(key, []).append(comparison)
    for comparisons in targets.values():
        for purifier in featured(line.any for comparison in comparisons for line in comparison.lines):
            lines = [
                (comparison, line)
                for comparison in comparisons
                for line in comparison.lines
                if line.purifier == purifier
            ]
            yield {
                "setting": table.setting,
                "comparison": comparisons[0],
                "purifier": purifier,
                "suspicious": any(line.suspicious for _, line in lines),
                "clean": lines[0][1].any["accuracy_clean"],
                "bars": [
                    figures.Bar(
                        attack="no attack" if line.any["attack"] == NO_ATTACK else line.any["attack"],
                        detail=comparison.ball,
                        clean=line.any["accuracy_clean"],
                        **line.shares,
                    )
                    for comparison, line in lines
                ],
            }
