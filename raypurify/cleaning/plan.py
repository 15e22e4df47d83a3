"""The frozen plan of a cleaning: which inputs there are, the units they are cleaned in, and the names of their outputs.

::

    OUTPUT/plan/generation-000/part-00000.parquet      schema.PLAN; the rows of a unit follow one another in one part
    OUTPUT/plan/generation-000/_SUCCESS                written last: counts, as JSON
    OUTPUT/plan/generation-001/part-00000.parquet      what an update found new or changed
    OUTPUT/plan/generation-001/replaced-00000.parquet  rows of former generations that it takes the place of

A generation without its mark is not there: it is made anew from the start. One with its mark is never changed, and its
input never listed again. :mod:`raypurify.cleaning.planner` writes them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypurify import storage
from raypurify.cleaning.entries import Entry, id_stem
from raypurify.runs import schema
from raypurify.storage.bounded import Digests, digests_of

SAMPLED_UNITS = 4
"""The largest number of units that a sample's inputs are taken from."""


@dataclass(frozen=True, kw_only=True)
class UnitContent:
    """Entries that are cleaned together, written together, and done again together when cut off."""

    name: str
    entries: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """Bytes of its files; a Parquet file's count with its first rows."""
        return sum(max(0, entry.size) for entry in self.entries if not entry.first)


@dataclass(frozen=True, kw_only=True)
class PlannedUnit:
    """A unit as the driver knows it."""

    name: str
    part: str
    """URL of the plan's file that holds its entries."""
    images: int | None
    """Those of its inputs that no later generation plans anew; None for a tar, whose images nobody has counted."""

    def read(self) -> UnitContent:
        """Its entries."""
        table = read_part(self.part)
        rows = table.filter(pc.equal(table["unit"], self.name)).to_pylist()
        return UnitContent(name=self.name, entries=tuple(map(Entry.of_row, rows)))


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

    @classmethod
    def of(cls, entries: Sequence[Entry], *, units: int) -> Counts:
        """The counts of some entries."""
        files = [entry for entry in entries if entry.first == 0]
        return cls(
            units=units,
            files=len(files),
            images=sum(entry.rows or 0 for entry in entries),
            tars=sum(entry.kind == "tar" for entry in entries),
            size=sum(max(0, entry.size) for entry in files),
        )

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


class Generation:
    """One generation of a plan: its first, or what an update added."""

    def __init__(self, output: str, number: int) -> None:
        self.number = number
        self.folder = storage.join(output, "plan", f"generation-{number:03d}")

    @cached_property
    def mark(self) -> dict[str, Any]:
        """What was counted; it is there once the generation is finished."""
        mark: dict[str, Any] = storage.read_json(storage.join(self.folder, storage.SUCCESS))
        return mark

    def part(self, name: str, number: int) -> str:
        """URL of one of the generation's Parquet files."""
        return storage.join(self.folder, f"{name}-{number:05d}.parquet")

    def planned(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The planned rows, a part at a time."""
        for number in range(self.mark["parts"]):
            yield storage.read_table(self.part("part", number), columns or schema.PLAN.names)

    def replaced(self) -> Iterator[tuple[Entry, bool]]:
        """Entries of former generations that it takes the place of, in the order of their keys.

        Yields:
            The entry as it was, and whether its output is stale: nothing writes it any more, as when a Parquet file is
            now cut into fewer ranges.
        """
        for number in range(self.mark["replaced_parts"]):
            for row in storage.read_table(self.part("replaced", number), schema.REPLACED.names).to_pylist():
                yield Entry.of_row(row), row["is_stale"]


class PartWriter:
    """Writes rows of a generation in Parquet files of bounded size, and counts what they hold."""

    def __init__(self, generation: Generation, name: str, columns: pa.Schema, limit: int) -> None:
        """``limit``: about how many rows a part has."""
        self.generation, self.name, self.columns, self.limit = generation, name, columns, limit
        self.rows: list[tuple[Any, ...]] = []
        self.parts = 0
        self.counts = Counts()

    def add(self, unit: str, entries: Sequence[Entry], *others: Iterable[Any]) -> None:
        """Add the entries of a unit, or of none, to one file; ``others``: what other columns say of each."""
        self.rows += [(*entry.row(unit), *values) for entry, *values in zip(entries, *others, strict=True)]
        self.counts += Counts.of(entries, units=1 if unit else 0)
        if len(self.rows) >= self.limit:
            self.close()

    def close(self) -> None:
        """Write what is left."""
        if not self.rows:
            return
        values = zip(*self.rows, strict=True)
        columns = [pa.array(column, field.type) for column, field in zip(values, self.columns, strict=True)]
        table = pa.Table.from_arrays(columns, schema=self.columns)
        storage.write_table(self.generation.part(self.name, self.parts), table)
        self.rows = []
        self.parts += 1


def generations(output: str) -> list[Generation]:
    """The generations that have their marks, the first one first; none where there is no plan, or one cut off."""
    urls = storage.list_files(storage.join(output, "plan"), storage.SUCCESS)
    names = (re.search(r"/generation-(\d+)/[^/]*$", url) for url in urls)
    return [Generation(output, number) for number in sorted(int(name[1]) for name in names if name)]


def require_generations(output: str) -> list[Generation]:
    """As :func:`generations`; raises a ValueError where there are none."""
    if found := generations(output):
        return found
    raise ValueError(f"{output}: there is no plan yet; freeze one first")


def units(output: str) -> Iterator[PlannedUnit]:
    """The units of all generations, in the order of the plan; of a plan with updates, the latest generation first.

    Raises:
        ValueError: there is no plan.
    """
    for table, part in _parts(output):
        rows = pc.if_else(pc.equal(table["replanned"], 0), table["rows"], 0)
        summed = (
            table.append_column("images", rows)
            .group_by("unit", use_threads=False)
            .aggregate([("images", "sum"), ("images", "count"), ("replanned", "count")])
        )
        for row in summed.to_pylist():
            is_known = row["images_count"] == row["replanned_count"]
            yield PlannedUnit(name=row["unit"], part=part, images=row["images_sum"] if is_known else None)


def replanned_units(output: str, since: int) -> Iterator[tuple[str, set[str]]]:
    """Units some of whose inputs generation ``since`` or a later one plans anew, and the ids of their other inputs."""
    for table, _ in _parts(output):
        touched = pc.unique(table.filter(pc.greater_equal(table["replanned"], since))["unit"])
        rows = table.filter(pc.is_in(table["unit"], touched)).select(["unit", "key", "replanned"]).to_pylist()
        for name, same in groupby(rows, key=lambda row: row["unit"]):
            yield name, {id_stem(row["key"]) for row in same if not row["replanned"]}


def _parts(output: str) -> Iterator[tuple[pa.Table, str]]:
    """The plan's files and their URLs; ``replanned``: the last generation that plans an input anew, 0 for none."""
    found = require_generations(output)
    later: dict[int, Digests] = {}
    for generation in reversed(found):
        keys = Digests()
        for number, table in enumerate(generation.planned(["unit", "key", "rows"])):
            replanned = np.zeros(len(table), np.int64)
            if len(found) > 1:
                digests = digests_of(table["key"].to_pylist())
                for other, planned in later.items():
                    replanned[(replanned == 0) & planned.holds(digests)] = other
                if generation.number:
                    keys.update(digests)
            yield table.append_column("replanned", pa.array(replanned)), generation.part("part", number)
        later[generation.number] = keys.seal()


@lru_cache(maxsize=2)
def read_part(url: str) -> pa.Table:
    """A file of a plan. The last ones stay in memory: a worker does many units of one."""
    return storage.read_table(url, schema.PLAN.names)


def sample(output: str, count: int) -> UnitContent:
    """Some ``count`` inputs, spread over a few units that are spread over the plan: for a trial."""
    planned = list(units(output))
    chosen = planned[:: max(1, len(planned) // SAMPLED_UNITS)][:SAMPLED_UNITS]
    entries: list[Entry] = []
    for unit in chosen:
        mine = unit.read().entries
        wanted = max(1, count // len(chosen))
        if mine[0].kind == "parquet":
            entries.append(mine[0]._replace(rows=min(mine[0].rows or 0, wanted)))
        elif mine[0].kind == "image":
            # Not every n-th: names may have a rhythm.
            rows = random.Random(0).sample(range(len(mine)), min(wanted, len(mine)))
            entries += [mine[row] for row in sorted(rows)]
        elif not entries:
            entries += mine
    return UnitContent(name="sample", entries=tuple(entries))
