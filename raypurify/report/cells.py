"""Rows of a summary: which of them may be compared, and which stand for a security curve."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from raypurify.runs.schema import NO_ATTACK, WORST_OF

Row = dict[str, Any]
"""One row of ``summary.parquet``."""


def grouped(rows: Iterable[Row], key: Callable[[Row], tuple[Any, ...]]) -> dict[tuple[Any, ...], list[Row]]:
    """The rows by a key, in the order in which each key comes first."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def featured(rows: Iterable[Row]) -> list[str]:
    """The purifiers worth a figure: the learned ones, or all but the identity where none is learned."""
    members = list(rows)
    learned = [row["purifier"] for row in members if not row["trivial"]]
    return list(dict.fromkeys(learned or [name for row in members if (name := row["purifier"]) != "identity"]))


def threat(row: Row) -> tuple[Any, ...]:
    """The ball that bounds the attack. Figures of two of them are never compared."""
    return row["dataset"], row["classifier"], row["norm"], row["eps"]


def worst_cases(rows: Sequence[Row]) -> dict[str, float]:
    """The accuracy under the worst of several attacks, by the hashes of the cells that have one.

    A cell is left out where its attack is alone in its ball and its figure is its own.
    """
    bounded = [row for row in rows if row["accuracy_worst"] is not None]
    sets = grouped(bounded, lambda row: tuple(row[name] for name in WORST_OF)).values()
    return {
        row["cell"]: row["accuracy_worst"]
        for members in sets
        for row in members
        if len(members) > 1 or row["accuracy_worst"] < row["accuracy_purified"]
    }


def surrogate(row: Row) -> str | None:
    """The classifier that a transferred image was made on; None in the other settings."""
    return str(row["victim"]) if row["setting"] == "transfer" else None


def series(row: Row) -> tuple[Any, ...]:
    """What the cells of a security curve have in common: all of an attack but its radius, and whom it attacks."""
    values = json.loads(row["params"])
    params = json.dumps({key: value for key, value in values.items() if key != row["radius"]}, sort_keys=True)
    target = row["setting"], row["dataset"], row["classifier"], surrogate(row)
    return *target, row["attack"], row["norm"], params


def reference_radius(rows: Sequence[Row]) -> float | None:
    """The radius whose figures stand for a whole curve: the largest at which a purifier met both an attacker who does
    not know it and one who does (adaptive); else the largest of the former, else of the latter.

    Args:
        rows: of one dataset, classifier and norm.
    """
    shown = featured(rows)
    bounded = [row for row in rows if row["eps"] is not None and row["attack"] != NO_ATTACK]
    static, adaptive = (
        {(row["purifier"], row["eps"]) for row in bounded if (row["setting"] == "adaptive") == knows}
        for knows in (False, True)
    )
    common = {pair for pair in static & adaptive if pair[0] in shown}
    return max((eps for _, eps in common or static or adaptive), default=None)


def at_one_radius(rows: Sequence[Row]) -> list[Row]:
    """The rows without those of a curve that are not at its reference radius, or at its largest where it lacks that."""
    bounded = [row for row in rows if row["eps"] is not None]
    spaces = grouped(rows, lambda row: threat(row)[:3])
    references = {space: reference_radius(members) for space, members in spaces.items()}
    radii = {curve: {row["eps"] for row in members} for curve, members in grouped(bounded, series).items()}

    def chosen(row: Row) -> bool:
        if row["eps"] is None:
            return True
        reference, own = references[threat(row)[:3]], radii[series(row)]
        return bool(row["eps"] == (reference if reference in own else max(own)))

    return [row for row in rows if chosen(row)]
