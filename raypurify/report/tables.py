"""What the page says about a summary: rows grouped by attack, each white-box figure beside its adaptive one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from raypurify.report import formats
from raypurify.schema import NO_ATTACK

Row = dict[str, Any]
"""One row of ``summary.parquet``."""

TRIVIAL = frozenset({"none", "identity", "rounding", "threshold", "mean_filter", "median_filter", "jpeg"})
"""Purifiers that learned nothing: what a learned one must beat."""


def is_trivial(purifier: str) -> bool:
    return purifier.partition(",")[0].strip() in TRIVIAL


def featured(purifiers: Iterable[str]) -> list[str]:
    """The purifiers worth a figure: the learned ones, or all but the identity where none is learned."""
    names = list(dict.fromkeys(purifiers))
    learned = [name for name in names if not is_trivial(name)]
    return learned or [name for name in names if name.partition(",")[0] not in ("none", "identity")]


def threat(row: Row) -> tuple[Any, ...]:
    """The ball that bounds the attack. Figures of two of them are never compared."""
    return row["dataset"], row["classifier"], row["norm"], row["eps"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One purifier against one attack. A figure is None where its cell was not run."""

    purifier: str
    static: Row | None
    """The cell whose attacker does not know the purifier."""
    adaptive: Row | None
    """The adaptive cell of the same attack and ball; the lowest of several."""
    adaptive_note: str = ""
    best: bool = False
    best_adaptive: bool = False

    @property
    def trivial(self) -> bool:
        return is_trivial(self.purifier)

    @property
    def any(self) -> Row:
        row = self.static or self.adaptive
        assert row is not None
        return row


@dataclass(frozen=True, kw_only=True)
class Group:
    """All purifiers against one attack on one classifier: learned first."""

    dataset: str
    classifier: str
    attack: str
    ball: str
    params: dict[str, str]
    n: int
    lines: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The groups of one setting."""

    setting: str
    groups: tuple[Group, ...]


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


def read_tables(rows: Sequence[Row]) -> list[Table]:
    """Group a summary: white-box first, then the other settings. Every adaptive cell appears beside its static partner,
    or on a line of its own in the first table where it has none."""
    adaptive = [row for row in rows if row["setting"] == "adaptive"]
    static = [row for row in rows if row["setting"] != "adaptive"]
    partners = {_match(row) for row in static}
    orphans = [row for row in adaptive if _match(row) not in partners]
    settings = dict.fromkeys(["white-box", *(row["setting"] for row in static)])
    tables = []
    for setting in settings:
        members = [row for row in static if row["setting"] == setting]
        lone = orphans if setting == "white-box" else []
        if members or lone:
            tables.append(Table(setting=setting, groups=tuple(_groups(members, lone, adaptive))))
    return tables


def _match(row: Row) -> tuple[Any, ...]:
    return *threat(row), row["attack"], row["purifier"]


def _groups(static: Sequence[Row], orphans: Sequence[Row], adaptive: Sequence[Row]) -> list[Group]:
    grouped: dict[tuple[Any, ...], list[Row]] = {}
    for row in [*static, *orphans]:
        grouped.setdefault((*threat(row), row["attack"], row["params"]), []).append(row)
    return [_group(members, adaptive) for members in grouped.values()]


def _group(members: Sequence[Row], adaptive: Sequence[Row]) -> Group:
    first = members[0]
    lines = []
    for row in members:
        same = [other for other in adaptive if _match(other) == _match(row)]
        lowest = min(same, key=lambda other: other["accuracy_purified"], default=None)
        static = None if row["setting"] == "adaptive" else row
        note = _difference(first, lowest, count=len(same)) if lowest else ""
        lines.append(Line(purifier=row["purifier"], static=static, adaptive=lowest, adaptive_note=note))
    lines.sort(key=lambda line: line.trivial)
    return Group(
        dataset=first["dataset"],
        classifier=first["classifier"],
        attack=first["attack"],
        ball="" if first["attack"] == NO_ATTACK else formats.ball(first["norm"], first["eps"]),
        params=formats.parameters(first["params"]),
        n=max(row["n"] for row in members),
        lines=tuple(_with_best(lines)),
    )


def _difference(row: Row, adaptive: Row, *, count: int) -> str:
    """Which parameters the adaptive attack has otherwise than ``row``'s."""
    base, other = formats.parameters(row["params"]), formats.parameters(adaptive["params"])
    text = formats.pairs({key: value for key, value in other.items() if base.get(key) != value})
    return "; ".join(part for part in (text, f"lowest of {count}" if count > 1 else "") if part)


def _with_best(lines: Sequence[Line]) -> list[Line]:
    """Mark the best figures, ties included, where there is a choice."""
    static = [line.static["accuracy_purified"] for line in lines if line.static]
    adaptive = [line.adaptive["accuracy_purified"] for line in lines if line.adaptive]
    return [
        Line(
            purifier=line.purifier,
            static=line.static,
            adaptive=line.adaptive,
            adaptive_note=line.adaptive_note,
            best=line.static is not None and len(static) > 1 and line.static["accuracy_purified"] == max(static),
            best_adaptive=line.adaptive is not None
            and len(adaptive) > 1
            and line.adaptive["accuracy_purified"] == max(adaptive),
        )
        for line in lines
    ]


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
    static, partner = None, min(adaptive, key=lambda row: row["accuracy_purified"], default=None)
    if attacked:
        # An attack that minimises the distance always wins in the end: a ball makes strengths comparable.
        bounded = [row for row in attacked if row["eps"] is not None] or attacked
        strongest = min(bounded, key=lambda row: row["accuracy_adversarial"])
        against = [row for row in bounded if _attack(row) == _attack(strongest)]
        shown = featured(row["purifier"] for row in against) or [strongest["purifier"]]
        choices = [(row, _lowest_adaptive(row, adaptive)) for row in against if row["purifier"] in shown]
        static, partner = max(choices, key=lambda choice: _worst_case(*choice))
    first = rows[0]
    clean = (static or first)["accuracy_clean"]
    return Headline(
        dataset=first["dataset"], classifier=first["classifier"], clean=clean, static=static, adaptive=partner
    )


def _attack(row: Row) -> tuple[Any, ...]:
    return *threat(row), row["attack"], row["params"]


def _lowest_adaptive(row: Row, adaptive: Sequence[Row]) -> Row | None:
    same = [other for other in adaptive if (threat(other), other["purifier"]) == (threat(row), row["purifier"])]
    return min(same, key=lambda other: other["accuracy_purified"], default=None)


def _worst_case(static: Row, adaptive: Row | None) -> tuple[bool, float, float]:
    """A purifier whose adaptive figure is known comes before one whose is not."""
    purified = static["accuracy_purified"]
    return adaptive is not None, min(purified, adaptive["accuracy_purified"]) if adaptive else purified, purified
