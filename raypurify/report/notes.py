"""How to read the page."""

from __future__ import annotations

from raypurify.evaluation.masking import DIFFERENCE, ZERO
from raypurify.report.cells import worst_cases
from raypurify.report.sections import Page, Section


def section(page: Page) -> Section | None:
    """What the figures mean, and what they do not."""
    if not page.rows:
        return None
    settings = {table.setting for table in page.tables}
    detects = any(row["detection_rate"] is not None for row in page.rows)
    return page.section(
        "notes",
        "How to read this",
        zero=ZERO,
        difference=DIFFERENCE,
        settings=settings,
        detects=detects,
        worst=worst_cases(page.rows),
    )
