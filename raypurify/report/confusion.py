"""Which classes are taken for which: before the attack's images are purified, and after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raypurify.report import formats
from raypurify.report.cells import featured, grouped
from raypurify.report.sections import Page, Section
from raypurify.runs.schema import NO_ATTACK

WHOLE = 12
"""Classes of which all pairs are shown; of more, the most frequent mistakes."""
MISTAKES = 12

Counts = dict[tuple[int, int], int]
"""How many images, by their label and what they are taken for."""


def section(page: Page) -> Section | None:
    """For each setting, classifier and featured purifier, the attack that leaves least right."""
    found = list(confusions(page))
    return page.section("confusion", "Confusion", confusions=found) if found else None


def confusions(page: Page) -> Iterator[dict[str, Any]]:
    """What was confused, a purifier after the other."""
    counted: dict[tuple[str, str], Counts] = {}
    for row in page.confusion.to_pylist():
        counted.setdefault((row["cell"], row["kind"]), {})[row["label"], row["predicted"]] = row["n"]
    shown = featured(page.rows)
    rows = [row for row in page.rows if row["purifier"] in shown and row["attack"] != NO_ATTACK]
    names = ("setting", "dataset", "classifier", "purifier")
    for members in grouped(rows, lambda row: tuple(row[name] for name in names)).values():
        hardest = min(members, key=lambda row: float(row["accuracy_purified"]))
        before, after = (counted.get((hardest["cell"], kind), {}) for kind in ("adversarial", "purified"))
        if before and after:
            yield {
                "row": hardest,
                "ball": formats.ball(hardest["norm"], hardest["eps"]),
                **_compared(page, before, after),
            }


def _compared(page: Page, before: Counts, after: Counts) -> dict[str, Any]:
    """Both matrices, or the most frequent mistakes where there are many classes."""
    classes = sorted({number for pair in (*before, *after) for number in pair})
    names = {number: page.class_name(number) for number in classes}
    if len(classes) <= WHOLE:
        matrices = {"Without a defense": _matrix(before, classes), "Purified": _matrix(after, classes)}
        return {"names": names, "matrices": matrices, "mistakes": []}
    mistakes = [pair for pair in {*before, *after} if pair[0] != pair[1]]
    mistakes.sort(key=lambda pair: (-after.get(pair, 0), -before.get(pair, 0), pair))
    told = [
        (names[label], names[taken], before.get((label, taken), 0), after.get((label, taken), 0))
        for label, taken in mistakes[:MISTAKES]
    ]
    return {"names": names, "matrices": {}, "mistakes": told}


def _matrix(counts: Counts, classes: list[int]) -> dict[int, list[tuple[int, float, bool]]]:
    """Of each label, the images that are taken for each class: how many, their share of the label's, and whether that
    is right."""
    rows = {}
    for label in classes:
        row = [counts.get((label, taken), 0) for taken in classes]
        rows[label] = [(n, n / max(1, sum(row)), label == taken) for n, taken in zip(row, classes, strict=True)]
    return rows
