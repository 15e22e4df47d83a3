"""Units of rows on Ray Data: planned runs of a dataset stream through actors that write what they make of each.

A unit is a fixed run of rows. What is made of it is written under names that follow from the plan, each file at once: a
file that is there is whole, a retried unit overwrites itself, and a run that is given again does what is missing. The
driver sees one small row for each unit, never an image.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import Dataset

from raypurify import runs, storage
from raypurify.cleaning import accounts
from raypurify.data import Rows, Source, narrowed, read_rows, shape_of
from raypurify.distributed import cluster, streams
from raypurify.distributed.arithmetic import compute_on_cpus
from raypurify.report import formats
from raypurify.runs import fields, schema
from raypurify.runs.progress import Progress
from raypurify.storage.published import published
from raypurify.training import Batch, batch_of

LARGEST = 500
"""Rows of a unit at most: what is written together, and done again when it was cut off."""
SMALLEST = 16
"""Rows of a unit at least: with fewer, its files and its way through Ray would take longer than its work."""
UNITS = 16
"""Units of a small dataset: several actors share it evenly, and progress shows while they work."""
ENOUGH = 1000
"""Images after which the share of rejects is judged."""
WARMING, TRIED = 2, 32
"""Images that a dry run tries: those that networks are called for the first time with, and those that are timed."""


@dataclass(frozen=True, kw_only=True)
class ActorPool:
    """Who does the work. None of it changes what is computed, beyond rounding.

    An attack whose result depends on its batch (those of torchattacks) is another one with another ``batch``.
    """

    actors: int = 2
    """Actors that compute; the pool starts with so many."""
    max_actors: int | None = None
    """The pool grows to so many where the cluster has room, or makes room; ``actors`` if none is given."""
    cpus_per_actor: int = 1
    """CPUs, and threads of arithmetic, of an actor."""
    gpus_per_actor: float = 0
    """GPUs of an actor; may be a fraction: with 0.5 one actor computes while the other reads and writes."""
    read_cpus: float = 0.5
    """CPUs of a task that reads and decodes, where reads run apart. Where the actors leave no CPU free, or with 0, such
    tasks wait for none, and run two at a time."""
    reads: Literal["fused", "apart"] = "fused"
    """fused: an actor reads its own images, best where all share CPUs. apart: tasks on CPUs read and decode ahead, best
    for actors on GPUs."""
    batch: int = 250
    """Images that go through the networks at once. Sums of float32 come out a last bit apart with another number."""

    def __post_init__(self) -> None:
        fields.check_choices(self)
        if self.actors < 1 or self.cpus_per_actor < 1 or self.batch < 1 or self.gpus_per_actor < 0:
            raise ValueError(
                f"actors, cpus_per_actor and batch must be at least 1, gpus_per_actor at least 0; got {self}"
            )
        if self.max_actors is not None and self.max_actors < self.actors:
            raise ValueError(f"max_actors must be at least actors={self.actors}; got {self.max_actors!r}")

    @property
    def needs(self) -> cluster.Needs:
        """What the pool starts with."""
        return cluster.Needs(kind="actor", count=self.actors, cpus=self.cpus_per_actor, gpus=self.gpus_per_actor)

    @property
    def device(self) -> str:
        """Of an actor's networks."""
        return "cuda" if self.gpus_per_actor > 0 else "cpu"


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A fixed run of rows, and what is still to be made of it."""

    name: str
    pieces: tuple[streams.Run, ...]
    missing: frozenset[str] = frozenset()

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.pieces)

    def read(self) -> list[Rows]:
        """The unit's images, decoded."""
        return [read_rows(piece.shard, piece.start, piece.stop) for piece in self.pieces]


def rows_of_unit(output: str, rows: int, *, coupled: int = 0, overwrite: bool = False) -> int:
    """How many rows the units of a run have: those of the run that the output holds, or what follows from the dataset.

    It follows from what is computed and not from the pool, since the names of files follow from it.

    Args:
        output: URL of the run's folder, whose identity may hold ``unit``.
        rows: of the dataset.
        coupled: images of a batch, where an attack's result depends on the whole of it; else 0.
        overwrite: the run that the output holds does not count.
    """
    begun: int | None = None if overwrite else runs.identity_of(output).get("unit")
    return begun or min(max(-(-rows // UNITS), SMALLEST, coupled), LARGEST)


def units_of(source: Source, rows: int) -> list[Unit]:
    """The dataset cut into units of ``rows`` rows, in order; a unit may span shards."""
    units: list[Unit] = []
    pieces: list[streams.Run] = []
    for piece in streams.runs_of(source, length=rows):
        while piece.rows:
            room = rows - sum(run.rows for run in pieces)
            taken = dataclasses.replace(piece, stop=min(piece.stop, piece.start + room))
            pieces.append(_own_picks(taken))
            piece = dataclasses.replace(piece, start=taken.stop)
            if sum(run.rows for run in pieces) == rows:
                units.append(Unit(name=f"{len(units):06d}", pieces=tuple(pieces)))
                pieces = []
    if pieces:
        units.append(Unit(name=f"{len(units):06d}", pieces=tuple(pieces)))
    return units


def _own_picks(run: streams.Run) -> streams.Run:
    """The run with no more of its shard's picked rows than its own: each unit is sent by itself."""
    if run.shard.picked is None:
        return run
    shard = dataclasses.replace(run.shard, rows=run.rows, picked=run.shard.picked[run.start : run.stop])
    return streams.Run(shard=shard, start=0, stop=run.rows)


def dry_run(
    source: Source, pool: ActorPool, start: Callable[[str], Callable[[Batch, Sequence[str]], object]]
) -> dict[str, Any]:
    """Send a few images through everything, in this process, and estimate the time; nothing is written.

    Args:
        source: the dataset.
        pool: the actors that would do the work.
        start: makes, on a device, what does a batch and its ids.

    Raises:
        ValueError: a cluster that is joined, and is too small; images that do not fit.
    """
    cluster.check_room(pool.needs)
    set_threads(pool)
    device = pool.device if torch.cuda.is_available() else "cpu"
    process = start(device)
    for count in (WARMING, TRIED):
        tried = narrowed(source, np.arange(min(count, source.rows)))
        began = time.perf_counter()
        pieces = [read_rows(shard, 0, shard.rows) for shard in tried.shards]
        for ids, images, labels in batches_of(pieces, pool.batch):
            process(batch_of(images, labels, (), device), ids)
        rate = tried.rows / (time.perf_counter() - began) * pool.actors
    return {
        "images": source.rows,
        "shape": "x".join(map(str, shape_of(source))),
        "classes": source.classes if isinstance(source.classes, int) else len(source.classes),
        "actors": pool.needs.told(),
        "tried": f"{tried.rows} on {device}",
        "rejected": sum(len(piece.rejects) for piece in pieces),
        "images_per_second": rate,
        "estimated": formats.duration(source.rows / rate),
    }


class Work(Protocol):
    """What every actor knows of a job."""

    @property
    def output(self) -> str:
        """URL of the run's folder; rejects are written there."""
        ...

    def begin_anew(self, unit: Unit) -> Unit:
        """Remove what was made of a unit of which other images can be read now; the unit, with all of it missing."""
        ...

    def start(self, pool: ActorPool) -> Callable[[Unit, Sequence[Rows]], None]:
        """Set an actor up; what it returns makes and writes what a unit is missing."""
        ...


def check_rejects(output: str, rejected: int, n: int, most: float) -> None:
    """Stop where ``rejected`` of ``n`` images are more than the share ``most``.

    Raises:
        StoppedError: with the reasons.
    """
    if rejected > most * n:
        some = ", ".join(f"{count:,} x {reason}" for reason, count in accounts.some_reasons(output).items())
        raise runs.StoppedError(
            f"{rejected:,} of {n:,} images are rejected, more than --max-rejects={most} allows. Reasons so far: "
            f"{formats.visible(some)}. {storage.join(output, 'rejects')} has each. What is done stays done: give a "
            "higher --max-rejects to go on"
        )


def stream(work: Work, units: Sequence[Unit], pool: ActorPool, label: str, max_rejects: float = 1.0) -> dict[str, Any]:
    """Do ``units``, each on one actor of the pool.

    Args:
        work: what the actors do.
        units: those with something missing.
        pool: the actors.
        label: of the progress display.
        max_rejects: share of the images, in [0, 1]; when more are rejected the work stops.

    Returns:
        Counts of this attempt: ``in`` and ``out`` (rows), ``images_per_second`` without the start.

    Raises:
        StoppedError: more than ``max_rejects`` of the images are rejected.
    """
    apart = pool.reads == "apart"
    read_cpus = cluster.read_cpus(pool.read_cpus, pool.needs) if apart else 0
    read = read_unit if apart else name_unit
    blocks = streams.read_blocks([(unit,) for unit in units], read, name="Units", read_cpus=read_cpus, ordered=False)
    knowledge = (work, {unit.name: unit for unit in units}, pool)
    counts: dict[str, Any] = {"in": 0, "out": 0}
    first, last = math.inf, 0.0
    with Progress(label, total=sum(unit.rows for unit in units), unit="images") as progress:
        for row in through(UnitActor, knowledge, blocks, len(units), pool):
            counts["in"] += row["rows"]
            counts["out"] += row["rows"] - row["rejected"]
            first, last = min(first, row["started"]), max(last, row["ended"])
            progress.advance(row["rows"], began=row["started"])
            if counts["in"] >= ENOUGH:
                check_rejects(work.output, counts["in"] - counts["out"], counts["in"], max_rejects)
    return {**counts, "images_per_second": round(counts["in"] / max(last - first, 1e-9), 1)} if units else counts


def through(
    actor: type[Callable[[pa.Table], pa.Table]], knowledge: object, blocks: Dataset, count: int, pool: ActorPool
) -> Iterator[dict[str, Any]]:
    """Send ``count`` blocks through a pool of actors; the rows that these give back, as they come.

    Args:
        actor: a class that is made with a reference to ``knowledge``, which all actors of a node share.
    """
    if not count:
        return
    actors = min(pool.actors, count)
    done = blocks.map_batches(
        actor,
        fn_constructor_args=(ray.put(knowledge),),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=pool.cpus_per_actor,
        num_gpus=pool.gpus_per_actor,
        compute=ray.data.ActorPoolStrategy(
            min_size=actors,
            max_size=max(actors, min(pool.max_actors or actors, count)),
            initial_size=actors,
            max_tasks_in_flight_per_actor=2,
        ),
    )
    yield from done.iter_rows()


class UnitActor:
    """Does the unit that a block holds or names; its work lies in the object store, where all actors share it."""

    def __init__(self, reference: ray.ObjectRef[tuple[Work, Mapping[str, Unit], ActorPool]]) -> None:
        self.work, self.units, pool = ray.get(reference)
        set_threads(pool)
        self.process = self.work.start(pool)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Do one unit.

        Returns:
            One row: ``rows`` (in), ``rejected``, ``started`` and ``ended`` (seconds of the clock).
        """
        started = time.time()
        unit = self.units[block["unit"][0].as_py()]
        pieces = [unpack(block)] if "image" in block.column_names else unit.read()
        rejects = [reject for piece in pieces for reject in piece.rejects]
        self.process(account(self.work, unit, rejects), pieces)
        row = {"rows": unit.rows, "rejected": len(rejects), "started": started, "ended": time.time()}
        return pa.Table.from_pylist([row])


def account(work: Work, unit: Unit, rejects: Sequence[Mapping[str, str]]) -> Unit:
    """Write a unit's rejects in the place of those of an earlier time.

    Returns:
        The unit, and what is missing of it: all, where others of its images can be read than at that time.
    """
    url = storage.join(work.output, "rejects", f"{unit.name}.parquet")
    there = storage.read_table(url).to_pylist() if storage.exists(url) else []
    rows = published(rejects)
    if {row["id"] for row in there} == {row["id"] for row in rows}:
        return unit
    # The rejects come last: cut off before, the unit still tells that other images can be read.
    unit = work.begin_anew(unit)
    if rows:
        storage.write_table(url, pa.Table.from_pylist(rows, schema.REJECTS))
    else:
        storage.remove(url)
    return unit


def set_threads(pool: ActorPool) -> None:
    """Let this process compute with as many threads as the pool gives an actor."""
    if pool.device == "cpu":
        compute_on_cpus(pool.cpus_per_actor)


def name_unit(unit: Unit) -> pa.Table:
    """The block of a unit that its actor reads by itself."""
    return pa.table({"unit": [unit.name]})


def read_unit(unit: Unit) -> pa.Table:
    """The block of a unit that is read ahead: a row an image (id, label, shape, pixels), and a row a reject."""
    pieces = unit.read()
    rows = [
        {"id": name, "label": int(label), "shape": image.shape, "image": image.tobytes()}
        for piece in pieces
        for name, label, image in zip(piece.ids, piece.labels, piece.images, strict=True)
    ]
    rejects = [reject for piece in pieces for reject in piece.rejects]
    return pa.Table.from_pylist([{"unit": unit.name, **row} for row in rows + rejects], TRANSPORT)


TRANSPORT = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("label", pa.int64()),
        pa.field("shape", pa.list_(pa.int64())),
        pa.field("image", pa.binary()),  # null: a reject
        *schema.REJECTS,
    ]
)
"""Between the tasks that read and the actors that compute."""


def unpack(table: pa.Table) -> Rows:
    """What :func:`read_unit` packed."""
    images = table.filter(table["image"].is_valid())
    arrays = [
        np.frombuffer(data.as_buffer(), np.uint8).reshape(shape)
        for data, shape in zip(images["image"], images["shape"].to_pylist(), strict=True)
    ]
    return Rows(
        ids=images["id"].to_pylist(),
        images=arrays,
        labels=images["label"].to_numpy(),
        rejects=table.filter(table["image"].is_null()).select(schema.REJECTS.names).to_pylist(),
    )


def batches_of(pieces: Sequence[Rows], size: int) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """Batches of at most ``size`` images of one shape: ids, (N, H, W, C) uint8, labels (N,)."""
    by_shape: dict[tuple[int, ...], list[tuple[str, np.ndarray, int]]] = {}
    for piece in pieces:
        for name, image, label in zip(piece.ids, piece.images, piece.labels, strict=True):
            by_shape.setdefault(image.shape, []).append((name, image, int(label)))
    for rows in by_shape.values():
        for start in range(0, len(rows), size):
            ids, images, labels = zip(*rows[start : start + size], strict=True)
            yield list(ids), np.stack(images), np.array(labels, dtype=np.int64)
