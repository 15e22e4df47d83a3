"""The units of a plan one by one: their names and sizes for the driver, their entries for the workers."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from raypurify import schema, storage
from raypurify.cleaning.base import Entry, Unit
from raypurify.cleaning.digests import Digests
from raypurify.cleaning.generations import whole


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A unit as the driver knows it."""

    name: str
    part: str
    """URL of the plan's file that holds its entries."""
    images: int | None
    """Those of its inputs that no later generation plans anew; None for a tar, whose images nobody has counted."""
    superseded: int
    """The last generation that plans some of its inputs anew; 0 for none."""


def schedule(output: str) -> Iterator[Planned]:
    """The units of all generations, in the order of the plan; of a plan with updates, the latest generation first.

    Raises:
        ValueError: there is no whole plan.
    """
    generations = whole(output)
    if not generations:
        raise ValueError(f"{output}: there is no plan; freeze one first")
    later: dict[int, Digests] = {}
    for generation, mark in reversed(generations):
        keys = Digests()
        for number, table in enumerate(generation.planned(mark, ["unit", "key", "kind", "rows"])):
            names = table["key"].to_pylist()
            last = [next((other for other, planned in later.items() if name in planned), 0) for name in names]
            table = table.append_column("last", pa.array(last, pa.int64()))
            yield from _planned(table, generation.part("part", number))
            if generation.number:
                for name in names:
                    keys.add(name)
        later[generation.number] = keys.seal()


def _planned(table: pa.Table, part: str) -> Iterator[Planned]:
    rows = pc.if_else(pc.equal(table["last"], 0), table["rows"], 0)
    summed = (
        table.append_column("images", rows)
        .group_by("unit", use_threads=False)
        .aggregate([("images", "sum"), ("images", "count"), ("last", "max"), ("last", "count")])
    )
    for row in summed.to_pylist():
        known = row["images_count"] == row["last_count"]
        yield Planned(
            name=row["unit"],
            part=part,
            images=row["images_sum"] if known else None,
            superseded=row["last_max"],
        )


def load(part: str, name: str) -> Unit:
    """The unit of this name, in this file of a plan."""
    table = _part(part)
    rows = table.filter(pc.equal(table["unit"], name)).drop_columns("unit").to_pylist()
    return Unit(name=name, entries=tuple(Entry(**row) for row in rows))


@lru_cache(maxsize=2)
def _part(part: str) -> pa.Table:
    return storage.read_table(part, schema.PLAN.names)


def live_keys(output: str, planned: Planned) -> set[str]:
    """Keys of a unit's inputs that no later generation plans anew."""
    generations = whole(output)
    number = int(planned.name.partition("-")[0])
    keys = {entry.key for entry in load(planned.part, planned.name).entries}
    for generation, mark in generations[number + 1 :]:
        for table in generation.planned(mark, ["key"]):
            keys -= set(pc.filter(table["key"], pc.is_in(table["key"], pa.array(sorted(keys)))).to_pylist())
    return keys


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
