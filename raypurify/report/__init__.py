"""The page that a run writes: one self-contained ``report.html``."""

from __future__ import annotations

from raypurify.report.page import render, write_report

__all__ = ["render", "write_report"]
