"""The files of a plan: generations, each a folder of Parquet files of bounded size and a mark that is written last."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from raypurify import storage
from raypurify.cleaning.drafts import Draft, Sizes, grouped
from raypurify.runs import schema

REPLACED = schema.PLAN.append(pa.field("is_stale", pa.bool_(), nullable=False))
"""``replaced-NNNNN.parquet``: former entries, of no unit, and whether nothing writes their outputs any more."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a plan holds."""

    units: int = 0
    files: int = 0
    images: int = 0
    """Image files and rows of Parquet files; those in tars are not known."""
    tars: int = 0
    size: int = 0
    """Bytes of the files, as far as they are known."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    def __sub__(self, other: Counts) -> Counts:
        return Counts(**{name: value - getattr(other, name) for name, value in asdict(self).items()})


def counted(drafts: Sequence[Draft], *, units: int) -> Counts:
    """What some drafts hold."""
    files = [draft for draft in drafts if draft.first == 0]
    return Counts(
        units=units,
        files=len(files),
        images=sum(draft.rows or 0 for draft in drafts),
        tars=sum(draft.kind == "tar" for draft in drafts),
        size=sum(max(0, draft.size) for draft in files),
    )


class Generation:
    """One generation of a plan: its first, or what an update added."""

    def __init__(self, output: str, number: int) -> None:
        self.number = number
        self.folder = storage.join(output, "plan", f"generation-{number:03d}")

    def read_mark(self) -> dict[str, Any]:
        """What was counted; the generation is whole."""
        mark: dict[str, Any] = storage.read_json(storage.join(self.folder, storage.SUCCESS))
        return mark

    def part(self, name: str, number: int) -> str:
        """URL of one of its Parquet files."""
        return storage.join(self.folder, f"{name}-{number:05d}.parquet")

    def planned(self, mark: Mapping[str, Any], columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The planned rows, a part at a time."""
        for number in range(mark["parts"]):
            yield storage.read_table(self.part("part", number), columns or schema.PLAN.names)

    def replaced(self, mark: Mapping[str, Any]) -> Iterator[pa.Table]:
        """The rows of former generations that it takes the place of, a part at a time."""
        for number in range(mark["replaced_parts"]):
            yield storage.read_table(self.part("replaced", number), REPLACED.names)

    def remove(self) -> None:
        """Remove what an attempt that was cut off has left."""
        storage.remove(self.folder)

    def write(self, drafts: Iterable[Draft], sizes: Sizes, about: Mapping[str, Any]) -> Counts:
        """Write the units of named drafts, and then the mark, with ``about`` in it."""
        parts = Parts(self, "part", schema.PLAN, sizes.part_rows)
        counts = Counts()
        for number, unit in enumerate(grouped(drafts, sizes)):
            parts.extend([draft.row(f"{self.number:03d}-{number:06d}") for draft in unit])
            counts += counted(unit, units=1)
        parts.close()
        mark = {"parts": parts.count, "counts": asdict(counts), **about}
        storage.write_json(storage.join(self.folder, storage.SUCCESS), mark)
        return counts


class Parts:
    """Writes rows in Parquet files of bounded size."""

    def __init__(self, generation: Generation, name: str, table: pa.Schema, rows: int) -> None:
        self.generation, self.name, self.schema, self.limit = generation, name, table, rows
        self.rows: list[tuple[Any, ...]] = []
        self.count = 0

    def extend(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Add rows that belong in one file."""
        self.rows += rows
        if len(self.rows) >= self.limit:
            self.close()

    def close(self) -> None:
        """Write what is left."""
        if not self.rows:
            return
        values = zip(*self.rows, strict=True)
        columns = [pa.array(column, field.type) for column, field in zip(values, self.schema, strict=True)]
        table = pa.Table.from_arrays(columns, schema=self.schema)
        storage.write_table(self.generation.part(self.name, self.count), table)
        self.rows = []
        self.count += 1


def whole(output: str) -> list[tuple[Generation, dict[str, Any]]]:
    """The generations that are whole, and their marks, the first one first."""
    urls = storage.list_files(storage.join(output, "plan"), storage.SUCCESS)
    names = (re.search(r"/generation-(\d+)/[^/]*$", url) for url in urls)
    numbers = sorted(int(name[1]) for name in names if name)
    generations = [Generation(output, number) for number in numbers]
    return [(generation, generation.read_mark()) for generation in generations]
