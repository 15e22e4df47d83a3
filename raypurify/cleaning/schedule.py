"""The units of a plan one by one: their names and sizes for the driver, their entries for the workers."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypurify import storage
from raypurify.cleaning.base import Entry, Unit, id_stem
from raypurify.cleaning.digests import Digests, digests_of
from raypurify.cleaning.generations import whole
from raypurify.runs import schema


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A unit as the driver knows it."""

    name: str
    part: str
    """URL of the plan's file that holds its entries."""
    images: int | None
    """Those of its inputs that no later generation plans anew; None for a tar, whose images nobody has counted."""


def schedule(output: str) -> Iterator[Planned]:
    """The units of all generations, in the order of the plan; of a plan with updates, the latest generation first.

    Raises:
        ValueError: there is no whole plan.
    """
    for table, part in _parts(output):
        yield from _planned(table, part)


def superseded(output: str, since: int) -> Iterator[tuple[str, set[str]]]:
    """Units some of whose inputs generation ``since`` or a later one plans anew, and the ids of their other inputs."""
    for table, _ in _parts(output):
        touched = pc.unique(table.filter(pc.greater_equal(table["last"], since))["unit"])
        rows = table.filter(pc.is_in(table["unit"], touched)).select(["unit", "key", "last"]).to_pylist()
        for name, same in groupby(rows, key=lambda row: row["unit"]):
            yield name, {id_stem(row["key"]) for row in same if not row["last"]}


def _parts(output: str) -> Iterator[tuple[pa.Table, str]]:
    """The plan's files and their URLs; ``last`` is the last generation that plans an input anew, 0 where none does."""
    generations = whole(output)
    if not generations:
        raise ValueError(f"{output}: there is no plan; freeze one first")
    later: dict[int, Digests] = {}
    for generation, mark in reversed(generations):
        keys = Digests()
        for number, table in enumerate(generation.planned(mark, ["unit", "key", "kind", "rows"])):
            last = np.zeros(len(table), np.int64)
            if len(generations) > 1:
                digests = digests_of(table["key"].to_pylist())
                for other, planned in later.items():
                    last[(last == 0) & planned.holds(digests)] = other
                if generation.number:
                    keys.update(digests)
            yield table.append_column("last", pa.array(last)), generation.part("part", number)
        later[generation.number] = keys.seal()


def _planned(table: pa.Table, part: str) -> Iterator[Planned]:
    rows = pc.if_else(pc.equal(table["last"], 0), table["rows"], 0)
    summed = (
        table.append_column("images", rows)
        .group_by("unit", use_threads=False)
        .aggregate([("images", "sum"), ("images", "count"), ("last", "count")])
    )
    for row in summed.to_pylist():
        known = row["images_count"] == row["last_count"]
        yield Planned(
            name=row["unit"],
            part=part,
            images=row["images_sum"] if known else None,
        )


def load(part: str, name: str) -> Unit:
    """The unit of this name, in this file of a plan."""
    return find(read(part), name)


def read(part: str) -> pa.Table:
    """A file of a plan, for :func:`find`."""
    return storage.read_table(part, schema.PLAN.names)


def find(table: pa.Table, name: str) -> Unit:
    """The unit of this name."""
    rows = table.filter(pc.equal(table["unit"], name)).drop_columns("unit").to_pylist()
    return Unit(name=name, entries=tuple(map(Entry.planned, rows)))


def sample(output: str, count: int) -> Unit:
    """Some ``count`` inputs, spread over a few units that are spread over the plan: for a trial."""
    units = list(schedule(output))
    chosen = units[:: max(1, len(units) // 4)][:4]
    entries: list[Entry] = []
    for planned in chosen:
        mine = load(planned.part, planned.name).entries
        wanted = max(1, count // len(chosen))
        if mine[0].kind == "parquet":
            entries.append(dataclasses.replace(mine[0], rows=min(mine[0].rows or 0, wanted)))
        elif mine[0].kind == "image":
            # Not every n-th: names may have a rhythm.
            rows = random.Random(0).sample(range(len(mine)), min(wanted, len(mine)))
            entries += [mine[row] for row in sorted(rows)]
        elif not entries:
            entries += mine
    return Unit(name="sample", entries=tuple(entries))
