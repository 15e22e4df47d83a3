"""The figures of a summary: rows grouped by attack, each white-box figure beside its adaptive one."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from raypurify.report import formats
from raypurify.report.cells import Row, at_one_radius, grouped, series, surrogate, threat, worst_cases
from raypurify.runs import schema

if TYPE_CHECKING:
    from raypurify.report.sections import Page, Section

HEADINGS = {"similarity": "Similarity of purified to clean", "perturbation": "Perturbation"}
"""What stands over the columns of each group of metrics."""


def section(page: Page) -> Section | None:
    """All figures: one table for each setting, what each attack spent, and every cell."""
    if not page.rows:
        return None
    shown = schema.shown(page.schema)
    metrics = {
        title: {name: how for name, how in shown.items() if how.group == group} for group, title in HEADINGS.items()
    }
    detects = any(row["detection_rate"] is not None for row in page.rows)
    return page.section(
        "figures",
        "All figures",
        metrics=metrics,
        detects=detects,
        draws=any(row["draws"] is not None for row in page.rows),
        worst=worst_cases(page.rows),
        budgets=_budgets(page.rows),
    )


@dataclass(frozen=True, kw_only=True)
class Line:
    """One purifier against one attack. A figure is None where its cell was not run."""

    static: Row | None
    """The cell whose attacker does not know the purifier."""
    adaptive: Row | None
    """The adaptive cell of the same attack and ball; the lowest of several."""
    adaptive_note: str = ""
    best: bool = False
    best_adaptive: bool = False

    @property
    def any(self) -> Row:
        row = self.static or self.adaptive
        assert row is not None
        return row

    @property
    def purifier(self) -> str:
        return str(self.any["purifier"])

    @property
    def trivial(self) -> bool:
        return bool(self.any["trivial"])

    @property
    def suspicious(self) -> bool:
        """Whether the adaptive figure may be too high, see masking.py."""
        return bool(self.adaptive and self.adaptive["masking"])

    @property
    def shares(self) -> dict[str, float | None]:
        """Accuracy without a defense, purified, and under the adaptive attacker."""
        static, adaptive = self.static, self.adaptive
        return {
            "adversarial": static["accuracy_adversarial"] if static else None,
            "purified": static["accuracy_purified"] if static else None,
            "adaptive": adaptive["accuracy_purified"] if adaptive else None,
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All purifiers against one attack on one classifier: learned first."""

    row: Row
    """Any of the comparison's cells, for what they have in common."""
    shown: bool
    """Whether the attack is at the radius that stands for its curve; one that was made at one radius is."""
    n: int
    lines: tuple[Line, ...]

    @property
    def surrogate(self) -> str | None:
        """The classifier that the images were made on, where it is another one."""
        return surrogate(self.row)

    @property
    def ball(self) -> str:
        return "" if self.row["attack"] == schema.NO_ATTACK else formats.ball(self.row["norm"], self.row["eps"])

    @property
    def params(self) -> dict[str, str]:
        return formats.parameters(self.row["params"], self.row["radius"])


@dataclass(frozen=True, kw_only=True)
class Table:
    """The comparisons of one setting."""

    setting: str
    comparisons: tuple[Comparison, ...]

    @property
    def shown(self) -> list[Comparison]:
        return [comparison for comparison in self.comparisons if comparison.shown]

    @property
    def others(self) -> list[Comparison]:
        """The comparisons at the other radii of security curves."""
        return [comparison for comparison in self.comparisons if not comparison.shown]


def read_tables(rows: Sequence[Row]) -> list[Table]:
    """Group a summary: white-box first, then the other settings. Every adaptive cell appears beside its static partner,
    or on a line of its own in the first table where it has none."""
    adaptive = [row for row in rows if row["setting"] == "adaptive"]
    static = [row for row in rows if row["setting"] != "adaptive"]
    partners = {_match(row) for row in static}
    shown = {row["cell"] for row in at_one_radius(rows)}
    tables = []
    for setting in dict.fromkeys(["white-box", *(row["setting"] for row in static)]):
        members = [row for row in static if row["setting"] == setting]
        if setting == "white-box":
            members += [row for row in adaptive if _match(row) not in partners]
        attacks = grouped(members, lambda row: (*threat(row), surrogate(row), row["attack"], row["params"]))
        if attacks:
            comparisons = tuple(_comparison(cells, adaptive, shown) for cells in attacks.values())
            tables.append(Table(setting=setting, comparisons=comparisons))
    return tables


def _match(row: Row) -> tuple[Any, ...]:
    return *threat(row), row["attack"], row["purifier"]


def _comparison(members: Sequence[Row], adaptive: Sequence[Row], shown: AbstractSet[str]) -> Comparison:
    lines = []
    for row in members:
        same = [other for other in adaptive if _match(other) == _match(row)]
        lowest = min(same, key=lambda other: other["accuracy_purified"], default=None)
        static = None if row["setting"] == "adaptive" else row
        note = _difference(members[0], lowest, count=len(same)) if lowest else ""
        lines.append(Line(static=static, adaptive=lowest, adaptive_note=note))
    return Comparison(
        row=members[0],
        shown=any(row["cell"] in shown for row in members),
        n=max(row["n"] for row in members),
        lines=tuple(_with_best(sorted(lines, key=lambda line: line.trivial))),
    )


def _difference(row: Row, adaptive: Row, *, count: int) -> str:
    """Which parameters the adaptive attack has otherwise than ``row``'s."""
    base, other = (formats.parameters(one["params"], one["radius"]) for one in (row, adaptive))
    text = formats.pairs({key: value for key, value in other.items() if base.get(key) != value})
    return "; ".join(part for part in (text, f"lowest of {count}" if count > 1 else "") if part)


def _with_best(lines: Sequence[Line]) -> list[Line]:
    """Mark the best figures, ties included, where there is a choice."""

    def best(kind: str) -> float | None:
        known = [share for line in lines if (share := line.shares[kind]) is not None]
        return max(known) if len(known) > 1 else None

    static, adaptive = best("purified"), best("adaptive")
    return [
        replace(
            line,
            best=static is not None and line.shares["purified"] == static,
            best_adaptive=adaptive is not None and line.shares["adaptive"] == adaptive,
        )
        for line in lines
    ]


def _budgets(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What each attack spent on an image, once for all victims and balls where it spent the same."""
    names = ("steps_mean", "steps_max", "queries_mean", "queries_max")
    attacked = [row for row in rows if row["attack"] != schema.NO_ATTACK]
    spent = grouped(attacked, lambda row: (*series(row)[4:], *(row[name] for name in names)))
    return [
        {
            "row": members[0],
            "params": formats.parameters(members[0]["params"], members[0]["radius"]),
            "victims": list(dict.fromkeys(row["victim"] for row in members)),
            "balls": [formats.ball(row["norm"], row["eps"]) for row in members],
        }
        for members in spent.values()
    ]
