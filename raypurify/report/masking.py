"""What the check for masked gradients says about the adaptive figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from raypurify.evaluation.masking import FINDINGS, MaskingCheck
from raypurify.report import formats
from raypurify.report.cells import Row, grouped
from raypurify.report.sections import Page, Section
from raypurify.runs.schema import MASKING_ATTACKS

FIGURES = {"zero_gradient": "zero_gradient_share"} | {attack: f"accuracy_{attack}" for attack in MASKING_ATTACKS}
"""The summary's column behind each finding, and that of the attack that others are compared with."""

_EVIDENCE = {
    "zero_gradient": "{zero_gradient_share}% of them",
    "single_step": "accuracy {accuracy_single_step}% after one step, {accuracy_multi_step}% after many",
    "random_search": "accuracy {accuracy_random_search}% after the search, {accuracy_multi_step}% after many steps",
    "unbounded": "accuracy {accuracy_unbounded}% at ε\u00a0=\u00a01",
    "straight_through": "accuracy {accuracy_straight_through}% with it, {accuracy_multi_step}% without",
}
"""The numbers that make each of the ``FINDINGS``."""


def section(page: Page) -> Section | None:
    """What the check found, and its figures; nothing without an adaptive cell."""
    adaptive = [row for row in page.rows if row["setting"] == "adaptive"]
    if not adaptive:
        return None
    checked = [row for row in adaptive if row["masking"] is not None]
    # Cells of one purifier, classifier and ball share their check.
    kept = grouped(checked, lambda row: (*_defense(row), _ball(row), row["masking_n"], *_figures(row)))
    checks = sorted((rows[0] for rows in kept.values()), key=lambda row: bool(row["trivial"]))
    suspicions = grouped((row for row in checks if row["masking"]), _defense)
    return page.section(
        "masking",
        "Masked gradients",
        suspicions=[(rows[0], _findings(rows)) for rows in suspicions.values()],
        checks=[(row, _ball(row), {FIGURES[name] for name in row["masking"]}) for row in checks],
        unchecked=Counter(
            f"{row['purifier']} before {row['classifier']}" for row in adaptive if row["masking"] is None
        ),
        figures=list(FIGURES.values()),
    )


def _ball(row: Row) -> str:
    # Where the attack has no L-infinity ball of its own, the check takes its default one.
    return formats.ball("linf", row["eps"] if row["norm"] == "linf" and row["eps"] else MaskingCheck.epsilon)


def _defense(row: Row) -> tuple[Any, ...]:
    return row["dataset"], row["classifier"], row["purifier"]


def _figures(row: Row) -> list[float | None]:
    return [row[name] for name in FIGURES.values()]


def _findings(checks: Sequence[Row]) -> dict[str, list[str]]:
    """The numbers behind each finding, each with the balls it holds in, by the finding in words."""
    findings = {}
    for name in dict.fromkeys(name for row in checks for name in row["masking"]):
        balls: dict[str, list[str]] = {}
        for row in checks:
            if name in row["masking"]:
                balls.setdefault(_evidence(name, row), []).append(_ball(row))
        findings[FINDINGS.get(name, name)] = [f"{text} ({formats.balls(where)})" for text, where in balls.items()]
    return findings


def _evidence(name: str, row: Row) -> str:
    """The numbers that make a finding, in words."""
    return _EVIDENCE.get(name, "").format_map({column: formats.percent(row[column]) for column in FIGURES.values()})
