"""The page that a run writes: one self-contained ``report.html``.

``page`` has the list of sections; a section is a module with ``section(page)`` and a template of its own.
"""

from __future__ import annotations

from raypurify.report.page import write_report
from raypurify.report.sections import Page, Section

__all__ = ["Page", "Section", "write_report"]
