"""The key figures of each classifier, all in one ball."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raypurify.evaluation.masking import weaknesses
from raypurify.report import attempts, formats
from raypurify.report.cells import Row, featured, grouped, reference_radius, surrogate, threat
from raypurify.report.sections import Page, Section
from raypurify.runs.schema import NO_ATTACK


def section(page: Page) -> Section:
    """What the run warns of, and the key figures of each classifier."""
    classifiers = grouped(page.rows, lambda row: (row["dataset"], row["classifier"]))
    return page.section(
        "headlines",
        "",
        headlines=[_headline(rows) for rows in classifiers.values()],
        warnings=attempts.warnings(page.run),
        weaknesses=weaknesses(page.rows),
        ball=formats.ball,
    )


def _headline(rows: Sequence[Row]) -> dict[str, Any]:
    """The strongest attack on one classifier, and the learned purifier with the best worst case.

    ``adaptive`` is the lowest adaptive cell of that purifier in the same ball, whatever its attack; ``radii`` says at
    how many radii of the ball's norm the classifier was attacked.
    """
    adaptive = [row for row in rows if row["setting"] == "adaptive"]
    attacked = [row for row in rows if row["setting"] != "adaptive" and row["attack"] != NO_ATTACK]
    attacked = _of_one_setting(attacked)
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
    row = static or partner or rows[0]
    radii = {other["eps"] for other in [*attacked, *adaptive] if other["norm"] == row["norm"]} - {None}
    return {"row": row, "static": static, "adaptive": partner, "radii": len(radii)}


def _of_one_setting(rows: list[Row]) -> list[Row]:
    """The white-box rows, or another setting's where only that has a purifier that learned; all where none has."""
    by_setting = grouped(rows, lambda row: (row["setting"] != "white-box", row["setting"]))
    ordered = [by_setting[key] for key in sorted(by_setting)]
    learned = [members for members in ordered if any(not row["trivial"] for row in members)]
    return next(iter(learned or ordered), rows)


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
        radius = reference_radius([row for row in [*bounded, *adaptive] if row["norm"] == norm])
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
