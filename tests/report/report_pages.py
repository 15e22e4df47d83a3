"""Pages, taken apart for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import pyarrow as pa

from raypurify.report import page
from raypurify.runs import schema

VOID = {"meta", "link", "img", "br", "hr", "input", "path", "use", "rect"}


class Parsed(HTMLParser):
    """The parts of a page that tests ask for; a tag that is left open or closed twice is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[dict[str, Any]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.key_figures: list[str] = []
        self._in_key_figure = False
        self._open: list[str] = []
        self._cell: list[str] | None = None
        self.feed(page)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append({"attributes": dict(attrs), "rows": []})
        elif tag == "tr":
            self.tables[-1]["rows"].append([])
        elif tag in ("td", "th"):
            self._cell = []
        self._in_key_figure = (tag == "dd" and "figure" in (dict(attrs).get("class") or "").split()) or (
            self._in_key_figure and tag == "span"
        )
        if tag == "dd" and self._in_key_figure:
            self.key_figures.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1:] == [tag], f"</{tag}> closes nothing"
        self._open.pop()
        if tag in ("td", "th"):
            assert self._cell is not None
            self.tables[-1]["rows"][-1].append(" ".join(" ".join(self._cell).split()))
            self._cell = None
        elif tag == "dd":
            self._in_key_figure = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_key_figure:
            self.key_figures[-1] += data
        if self._cell is not None:
            self._cell.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def figures(self, setting: str) -> list[list[str]]:
        """The rows of a setting's table, below its two header rows."""
        (table,) = [table for table in self.tables if table["attributes"].get("data-setting") == setting]
        return list(table["rows"][2:])


def render(summary: pa.Table, *, sections: Sequence[str] = (), **parts: Any) -> str:
    """A page of ``summary`` alone, but for the ``parts`` given: the parameters of ``page_of``."""
    kinds = {"samples": schema.SAMPLES, "rejects": schema.REJECTS, "confusion": schema.CONFUSION}
    tables = {name: kind.empty_table() for name, kind in kinds.items()}
    return page.filled(page.page_of(summary, **{"run": {}, "curves": {}, **tables, **parts}), sections)


def parse(summary: pa.Table, **parts: Any) -> Parsed:
    """:func:`render`, taken apart."""
    return Parsed(render(summary, **parts))
