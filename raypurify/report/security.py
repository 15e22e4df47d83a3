"""Security curves: accuracy against the radius of an attack that was made at several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from raypurify.report import figures, formats
from raypurify.report.cells import featured, series
from raypurify.report.sections import Page, Section
from raypurify.report.tables import Comparison, Line, Table


def section(page: Page) -> Section | None:
    """A curve for each featured purifier against each attack that met it at two or more radii."""
    drawn = list(curves(page))
    return page.section("security", "Security curves", curves=drawn) if drawn else None


def curves(page: Page) -> Iterator[dict[str, Any]]:
    """The security curves of a page, drawn one after the other."""
    for number, curve in enumerate(curve for table in page.tables for curve in _curves(table)):
        svg = figures.security_curve(curve["points"], norm=curve["norm"], name=f"security{number}")
        yield {**curve, "svg": svg}


def _curves(table: Table) -> list[dict[str, Any]]:
    families: dict[tuple[Any, ...], list[Comparison]] = {}
    for comparison in table.comparisons:
        if comparison.row["eps"] is not None:
            families.setdefault(series(comparison.row)[1:], []).append(comparison)
    curves = []
    for family in families.values():
        for purifier in featured(line.any for comparison in family for line in comparison.lines):
            lines = [line for comparison in family for line in comparison.lines if line.purifier == purifier]
            at = {line.any["eps"]: line for line in lines}
            if len(at) > 1:
                curves.append(
                    {
                        "setting": table.setting,
                        "comparison": family[0],
                        "norm": formats.norm_name(family[0].row["norm"]),
                        "purifier": purifier,
                        "points": _points([at[eps] for eps in sorted(at)]),
                        "suspicious": any(line.suspicious for line in at.values()),
                    }
                )
    return curves


def _points(lines: Sequence[Line]) -> list[figures.Point]:
    """The points of a curve, from radius 0 (no attack) upwards."""
    row = lines[0].any
    restored = row["accuracy_clean_purified"]
    start = figures.Point(eps=0.0, adversarial=row["accuracy_clean"], purified=restored, adaptive=restored)
    return [start, *(figures.Point(eps=line.any["eps"], **line.shares) for line in lines if line.any["eps"] > 0)]
