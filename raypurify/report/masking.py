"""What the check for masked gradients says about the adaptive figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raypurify.evaluation.masking import FINDINGS, MaskingCheck
from raypurify.report import formats
from raypurify.report.cells import Row
from raypurify.runs.schema import MASKING_ATTACKS

FIGURES = ("zero_gradient_share", *(f"accuracy_{attack}" for attack in MASKING_ATTACKS))

_EVIDENCE = {
    "zero_gradient": "{zero_gradient_share}% of them",
    "single_step": "accuracy {accuracy_single_step}% after one step, {accuracy_multi_step}% after many",
    "random_search": "accuracy {accuracy_random_search}% after the search, {accuracy_multi_step}% after many steps",
    "unbounded": "accuracy {accuracy_unbounded}% at ε\u00a0=\u00a01",
    "straight_through": "accuracy {accuracy_straight_through}% with it, {accuracy_multi_step}% without",
}
"""The numbers that make each of the ``FINDINGS``."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The figures of one purifier before one classifier, in one ball: those of every adaptive cell there."""

    dataset: str
    classifier: str
    purifier: str
    ball: str
    n: int
    trivial: bool
    figures: dict[str, float | None]
    """Shares in [0, 1] by the names in :data:`FIGURES`."""
    findings: tuple[str, ...]

    @property
    def firing(self) -> set[str]:
        """The figures that made a finding."""
        return {"zero_gradient_share" if name == "zero_gradient" else f"accuracy_{name}" for name in self.findings}


@dataclass(frozen=True, kw_only=True)
class Suspicion:
    """What was found on one purifier before one classifier."""

    dataset: str
    classifier: str
    purifier: str
    findings: dict[str, tuple[str, ...]]
    """The numbers behind each finding, each with the balls it holds in, by the finding in words."""


@dataclass(frozen=True, kw_only=True)
class Masking:
    """The section on masked gradients."""

    suspicions: tuple[Suspicion, ...]
    checks: tuple[Check, ...]
    unchecked: dict[str, int]
    """How many adaptive cells were not checked, by purifier and classifier."""


def read_masking(rows: Sequence[Row]) -> Masking | None:
    """What a summary holds of the check; None without an adaptive cell."""
    adaptive = [row for row in rows if row["setting"] == "adaptive"]
    if not adaptive:
        return None
    checks: dict[tuple[Any, ...], Check] = {}
    unchecked: dict[str, int] = {}
    for row in adaptive:
        if row["masking"] is None:
            name = f"{row['purifier']} before {row['classifier']}"
            unchecked[name] = unchecked.get(name, 0) + 1
        else:
            check = _check(row)
            key = (*_defense(check), check.ball, check.n, *check.figures.values())
            checks.setdefault(key, check)
    shown = sorted(checks.values(), key=lambda check: check.trivial)
    return Masking(suspicions=tuple(_suspicions(shown)), checks=tuple(shown), unchecked=unchecked)


def _check(row: Row) -> Check:
    # Where the attack has no L-infinity ball of its own, the check takes its default one.
    eps = row["eps"] if row["norm"] == "linf" and row["eps"] else MaskingCheck.epsilon
    return Check(
        dataset=row["dataset"],
        classifier=row["classifier"],
        purifier=row["purifier"],
        ball=formats.ball("linf", eps),
        n=row["masking_n"],
        trivial=bool(row["trivial"]),
        figures={name: row[name] for name in FIGURES},
        findings=tuple(row["masking"]),
    )


def _defense(check: Check) -> tuple[str, str, str]:
    return check.dataset, check.classifier, check.purifier


def _suspicions(checks: Sequence[Check]) -> list[Suspicion]:
    found: dict[tuple[str, str, str], list[Check]] = {}
    for check in checks:
        if check.findings:
            found.setdefault(_defense(check), []).append(check)
    return [
        Suspicion(dataset=dataset, classifier=classifier, purifier=purifier, findings=_findings(members))
        for (dataset, classifier, purifier), members in found.items()
    ]


def _findings(checks: Sequence[Check]) -> dict[str, tuple[str, ...]]:
    """Each finding once, and each of its numbers once."""
    findings: dict[str, tuple[str, ...]] = {}
    for name in dict.fromkeys(name for check in checks for name in check.findings):
        balls: dict[str, list[str]] = {}
        for check in checks:
            if name in check.findings:
                balls.setdefault(evidence(name, check.figures), []).append(check.ball)
        text = FINDINGS.get(name, name)
        findings[text] = tuple(f"{numbers} ({formats.balls(where)})" for numbers, where in balls.items())
    return findings


def evidence(name: str, figures: dict[str, float | None]) -> str:
    """The numbers that make a finding, in words."""
    return _EVIDENCE.get(name, "").format_map({key: formats.percent(figures[key]) for key in FIGURES})
