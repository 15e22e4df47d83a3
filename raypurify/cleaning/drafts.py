"""Drafts of planned entries: listed files, cut into what is cleaned apart, grouped into units."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from raypurify.cleaning import footers
from raypurify.cleaning.base import Kind
from raypurify.cleaning.inputs import Listed
from raypurify.cleaning.streams import RUN, concurrently
from raypurify.runs import schema
from raypurify.storage.published import escaped

FOOTERS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How a plan is cut."""

    unit_entries: int = 500
    """Image files of a unit, and rows of a Parquet file's run, at most."""
    unit_bytes: int = 16 << 20
    """Encoded bytes of a unit, at most, but for one file or row that has more."""
    part_rows: int = 1 << 14
    """Rows of a part, about: it ends with a unit."""
    sorted_rows: int = RUN
    """Rows that are sorted in memory at a time."""

    def __post_init__(self) -> None:
        for name in ("unit_entries", "unit_bytes", "part_rows", "sorted_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)!r}")


class Draft(NamedTuple):
    """An entry that has no unit yet."""

    key: str
    url: str
    kind: Kind
    size: int
    version: str
    first: int
    rows: int | None
    output: str | None
    """None until it has a name."""
    is_alone: bool
    """Whether it is all of its file."""
    joins: bool = False
    """Whether it belongs in the unit of the draft before it."""

    def row(self, unit: str) -> tuple[Any, ...]:
        """Its values in the order of ``schema.PLAN``."""
        return (unit, *self._replace(url=escaped(self.url))[: len(schema.PLAN) - 1])


class Item(NamedTuple):
    """A listed file, the drafts that it had in former generations, and those that it has."""

    listed: Listed
    former: list[Draft]
    drafts: list[Draft]


def drafted(items: Iterable[tuple[Listed, list[Draft]]], sizes: Sizes) -> Iterator[Item]:
    """Cut listed files into entries. Those that were there before, at the same first row, keep their outputs.

    Args:
        items: listed files, each with its former drafts.
        sizes: how they are cut.
    """

    def runs(item: tuple[Listed, list[Draft]]) -> list[footers.Run]:
        return footers.runs(item[0].url, item[0].size, rows=sizes.unit_entries, most=sizes.unit_bytes)

    found = concurrently(runs, items, at_once=FOOTERS_AT_ONCE, when=lambda item: item[0].kind == "parquet")
    for (listed, former), cuts in found:
        outputs = {draft.first: draft.output for draft in former}
        spans: list[tuple[int, int | None, bool]]
        spans = [*cuts] if cuts else [(0, None if listed.kind == "tar" else 1, False)]
        about = (listed.key, listed.url, listed.kind, listed.size, listed.version)
        yield Item(
            listed,
            former,
            [Draft(*about, first, rows, outputs.get(first), len(spans) == 1, joins) for first, rows, joins in spans],
        )


def grouped(drafts: Iterable[Draft], sizes: Sizes) -> Iterator[list[Draft]]:
    """The drafts of each unit: image files together, a tar alone, a run of rows with those that join it."""
    images: list[Draft] = []
    runs: list[Draft] = []
    size = 0
    for draft in drafts:
        if draft.kind != "image":
            if runs and not draft.joins:
                yield runs
                runs = []
            runs.append(draft)
            continue
        added = max(0, draft.size)
        if images and (len(images) >= sizes.unit_entries or size + added > sizes.unit_bytes):
            yield images
            images, size = [], 0
        images.append(draft)
        size += added
    yield from (unit for unit in (runs, images) if unit)
