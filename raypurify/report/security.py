"""Security curves: accuracy against the radius of an attack that was made at several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raypurify.report import formats
from raypurify.report.cells import featured
from raypurify.report.figures import Point
from raypurify.report.tables import Group, Line, Table


@dataclass(frozen=True, kw_only=True)
class SecurityCurve:
    """One purifier against one attack, from radius 0 (no attack) upwards."""

    setting: str
    dataset: str
    classifier: str
    surrogate: str | None
    attack: str
    norm: str
    """In letters: L∞."""
    params: dict[str, str]
    purifier: str
    points: tuple[Point, ...]
    suspicious: bool
    """Whether an adaptive figure may be too high, see masking.py."""


def security_curves(tables: Sequence[Table]) -> list[SecurityCurve]:
    """A curve for each featured purifier against each attack that met it at two or more radii."""
    curves = []
    for table in tables:
        families: dict[tuple[Any, ...], list[Group]] = {}
        for group in table.groups:
            if group.eps is not None:
                families.setdefault(group.series, []).append(group)
        for groups in families.values():
            for purifier in featured(line.any for group in groups for line in group.lines):
                at = {group.eps: line for group in groups for line in group.lines if line.purifier == purifier}
                if len(at) > 1:
                    curves.append(_curve(table.setting, groups[0], purifier, at))
    return curves


def _curve(setting: str, group: Group, purifier: str, at: dict[float | None, Line]) -> SecurityCurve:
    lines = {eps: line for eps, line in at.items() if eps is not None}
    some = next(iter(lines.values())).any
    restored = some["accuracy_clean_purified"]
    start = Point(eps=0.0, adversarial=some["accuracy_clean"], purified=restored, adaptive=restored)
    return SecurityCurve(
        setting=setting,
        dataset=group.dataset,
        classifier=group.classifier,
        surrogate=group.surrogate,
        attack=group.attack,
        norm=formats.norm_name(group.norm),
        params=group.params,
        purifier=purifier,
        points=(start, *(_point(eps, lines[eps]) for eps in sorted(lines) if eps > 0)),
        suspicious=any(line.suspicious for line in lines.values()),
    )


def _point(eps: float, line: Line) -> Point:
    static, adaptive = line.static, line.adaptive
    return Point(
        eps=eps,
        adversarial=static["accuracy_adversarial"] if static else None,
        purified=static["accuracy_purified"] if static else None,
        adaptive=adaptive["accuracy_purified"] if adaptive else None,
    )
