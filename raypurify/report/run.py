"""How the run was made: attempts, rejects, versions and hardware."""

from __future__ import annotations

from raypurify.report import attempts
from raypurify.report.sections import Page, Section
from raypurify.storage.published import redacted

REJECTS_SHOWN = 10
COUNTED = {"in": "Images in", "out": "Out", "rejected": "Rejected", "retries": "Retries"}


def section(page: Page) -> Section:
    """How it was run, and the first of its rejects."""
    rejects = redacted(page.rejects.slice(0, REJECTS_SHOWN).to_pylist())
    shown = attempts.shown(page.run, COUNTED)
    return page.section("run", "The run", run=shown, rejected=page.rejects.num_rows, rejects=rejects)
