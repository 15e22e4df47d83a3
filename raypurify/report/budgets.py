"""What each attack spent on an image: steps and queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raypurify.report import formats
from raypurify.report.cells import Row, series
from raypurify.runs.schema import NO_ATTACK


@dataclass(frozen=True, kw_only=True)
class Budget:
    """An attack on all victims and in all balls where it spent the same."""

    attack: str
    params: dict[str, str]
    victims: tuple[str, ...]
    balls: tuple[str, ...]
    steps_mean: float
    steps_max: int
    queries_mean: float
    queries_max: int


def budgets(rows: Sequence[Row]) -> list[Budget]:
    """The budgets of a summary's attacks, in the order of their first rows."""
    grouped: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["attack"] != NO_ATTACK:
            spent = (row["steps_mean"], row["steps_max"], row["queries_mean"], row["queries_max"])
            grouped.setdefault((*series(row)[4:], *spent), []).append(row)
    return [_budget(members) for members in grouped.values()]


def _budget(rows: Sequence[Row]) -> Budget:
    first = rows[0]
    return Budget(
        attack=first["attack"],
        params=formats.parameters(first["params"], first["radius"]),
        victims=tuple(dict.fromkeys(row["victim"] for row in rows)),
        balls=tuple(dict.fromkeys(formats.ball(row["norm"], row["eps"]) for row in rows)),
        steps_mean=first["steps_mean"],
        steps_max=first["steps_max"],
        queries_mean=first["queries_mean"],
        queries_max=first["queries_max"],
    )
