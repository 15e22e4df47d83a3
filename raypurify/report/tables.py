"""What the page says about a summary: rows grouped by attack, each white-box figure beside its adaptive one."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from raypurify.report import formats
from raypurify.report.cells import Row, at_one_radius, series, surrogate, threat
from raypurify.runs.schema import NO_ATTACK


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
        return bool(self.any["trivial"])

    @property
    def suspicious(self) -> bool:
        """Whether the adaptive figure may be too high, see masking.py."""
        return bool(self.adaptive and self.adaptive["masking"])

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
    surrogate: str | None
    """The classifier that the images were made on, where it is another one."""
    attack: str
    norm: str | None
    eps: float | None
    series: tuple[Any, ...]
    """What the groups of a security curve have in common."""
    shown: bool
    """Whether it is at the radius that stands for its curve; so is every attack at one radius."""
    params: dict[str, str]
    n: int
    lines: tuple[Line, ...]

    @property
    def ball(self) -> str:
        return "" if self.attack == NO_ATTACK else formats.ball(self.norm, self.eps)


@dataclass(frozen=True, kw_only=True)
class Table:
    """The groups of one setting."""

    setting: str
    groups: tuple[Group, ...]

    @property
    def shown(self) -> list[Group]:
        return [group for group in self.groups if group.shown]

    @property
    def others(self) -> list[Group]:
        """The groups at the other radii of security curves."""
        return [group for group in self.groups if not group.shown]


def read_tables(rows: Sequence[Row]) -> list[Table]:
    """Group a summary: white-box first, then the other settings. Every adaptive cell appears beside its static partner,
    or on a line of its own in the first table where it has none."""
    adaptive = [row for row in rows if row["setting"] == "adaptive"]
    static = [row for row in rows if row["setting"] != "adaptive"]
    partners = {_match(row) for row in static}
    orphans = [row for row in adaptive if _match(row) not in partners]
    shown = {row["cell"] for row in at_one_radius(rows)}
    settings = dict.fromkeys(["white-box", *(row["setting"] for row in static)])
    tables = []
    for setting in settings:
        members = [row for row in static if row["setting"] == setting]
        lone = orphans if setting == "white-box" else []
        if members or lone:
            tables.append(Table(setting=setting, groups=tuple(_groups(members, lone, adaptive, shown))))
    return tables


def _match(row: Row) -> tuple[Any, ...]:
    return *threat(row), row["attack"], row["purifier"]


def _groups(
    static: Sequence[Row], orphans: Sequence[Row], adaptive: Sequence[Row], shown: AbstractSet[str]
) -> list[Group]:
    grouped: dict[tuple[Any, ...], list[Row]] = {}
    for row in [*static, *orphans]:
        grouped.setdefault((*threat(row), surrogate(row), row["attack"], row["params"]), []).append(row)
    return [_group(members, adaptive, shown) for members in grouped.values()]


def _group(members: Sequence[Row], adaptive: Sequence[Row], shown: AbstractSet[str]) -> Group:
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
        surrogate=surrogate(first),
        attack=first["attack"],
        norm=first["norm"],
        eps=first["eps"],
        series=series(first)[1:],
        shown=any(row["cell"] in shown for row in members),
        params=formats.parameters(first["params"], first["radius"]),
        n=max(row["n"] for row in members),
        lines=tuple(_with_best(lines)),
    )


def _difference(row: Row, adaptive: Row, *, count: int) -> str:
    """Which parameters the adaptive attack has otherwise than ``row``'s."""
    base, other = (formats.parameters(one["params"], one["radius"]) for one in (row, adaptive))
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
