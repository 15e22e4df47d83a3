"""The key figures of each classifier, all in one ball."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raypurify.report.cells import Row, featured, reference_radius, surrogate, threat
from raypurify.runs.schema import NO_ATTACK


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The key figures of one classifier: its strongest attack, and the learned purifier with the best worst case.

    ``adaptive`` is the lowest adaptive cell of that purifier in the same ball, whatever its attack.
    """

    dataset: str
    classifier: str
    clean: float
    static: Row | None
    adaptive: Row | None
    radii: int
    """At how many radii of the ball's norm the classifier was attacked."""


def headlines(rows: Sequence[Row]) -> list[Headline]:
    """The key figures of each classifier of a summary, in the order of their first rows."""
    classifiers = dict.fromkeys((row["dataset"], row["classifier"]) for row in rows)
    return [
        _headline([row for row in rows if (row["dataset"], row["classifier"]) == classifier])
        for classifier in classifiers
    ]


def _headline(rows: Sequence[Row]) -> Headline:
    adaptive = [row for row in rows if row["setting"] == "adaptive"]
    attacked = [row for row in rows if row["setting"] != "adaptive" and row["attack"] != NO_ATTACK]
    attacked = [row for row in attacked if row["setting"] == "white-box"] or attacked
    members = _in_one_ball(attacked or adaptive, adaptive)
    static = None
    if attacked:
        strongest = min(members, key=lambda row: row["accuracy_adversarial"])
        against = [row for row in members if _attack(row) == _attack(strongest)]
        shown = featured(against) or [strongest["purifier"]]
        choices = [(row, _lowest_adaptive(row, adaptive)) for row in against if row["purifier"] in shown]
        static, partner = max(choices, key=lambda choice: _worst_case(*choice))
    else:
        partner = min(members, key=lambda row: row["accuracy_purified"], default=None)
    shown_row = static or partner or rows[0]
    return Headline(
        dataset=shown_row["dataset"],
        classifier=shown_row["classifier"],
        clean=shown_row["accuracy_clean"],
        static=static,
        adaptive=partner,
        radii=len({row["eps"] for row in [*attacked, *adaptive] if row["norm"] == shown_row["norm"]} - {None}),
    )


def _in_one_ball(rows: Sequence[Row], adaptive: Sequence[Row]) -> list[Row]:
    """The rows of one classifier in the ball that its key figures are of; those without a ball where there is none.

    An attack that minimises the distance always wins in the end, and one in a larger ball is no stronger for it: only
    figures of one ball are comparable. Of several norms, the one that the adaptive attacker shares comes first, then
    the one with the most rows.
    """
    bounded = [row for row in rows if row["eps"] is not None]
    if not bounded:
        return list(rows)
    balls = []
    for norm in dict.fromkeys(row["norm"] for row in bounded):
        space = [row for row in [*bounded, *adaptive] if row["norm"] == norm]
        radius = reference_radius(space)
        balls.append([row for row in bounded if (row["norm"], row["eps"]) == (norm, radius)])
    return max(balls, key=lambda ball: (any(_lowest_adaptive(row, adaptive) for row in ball), len(ball)))


def _attack(row: Row) -> tuple[Any, ...]:
    return *threat(row), row["setting"], surrogate(row), row["attack"], row["params"]


def _lowest_adaptive(row: Row, adaptive: Sequence[Row]) -> Row | None:
    same = [other for other in adaptive if (threat(other), other["purifier"]) == (threat(row), row["purifier"])]
    return min(same, key=lambda other: other["accuracy_purified"], default=None)


def _worst_case(static: Row, adaptive: Row | None) -> tuple[bool, float, float]:
    """A purifier whose adaptive figure is known comes before one whose is not."""
    purified = static["accuracy_purified"]
    return adaptive is not None, min(purified, adaptive["accuracy_purified"]) if adaptive else purified, purified
