"""Planned units through a pool of actors on Ray Data: how evaluation, attack and cleaning work.

A job says where it is written that a unit is done, and what an actor makes of one: see :class:`Work`. Each file is
written at once, under a name that follows from the plan: a file that is there is whole, a retried unit overwrites
itself, and a run that is given again does what is missing. The driver sees one small row for each unit, never an image.
"""

from __future__ import annotations

import functools
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import pyarrow as pa
import ray
from ray.data import Dataset, Datasource, ExecutionResources, ReadTask
from ray.data.block import Block, BlockMetadata

from raypurify import runs, storage
from raypurify.cleaning import accounts
from raypurify.distributed import cluster
from raypurify.distributed.arithmetic import compute_on_cpus
from raypurify.report import formats
from raypurify.runs import fields, lease
from raypurify.runs.progress import Progress
from raypurify.runs.tally import Tally
from raypurify.storage import retries

ENOUGH = 1000
"""Images after which the share of rejects is judged."""
UNIT_BYTES = 4 << 20
"""Bytes of a unit's block, about: what Ray Data is told."""


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

    def set_threads(self) -> None:
        """Let this process compute with as many threads as the pool gives an actor."""
        if self.device == "cpu":
            compute_on_cpus(self.cpus_per_actor)


class Unit(Protocol):
    """A planned part of a job: small, and picklable."""

    @property
    def name(self) -> str:
        """Of the files that are made of it."""
        ...

    @property
    def images(self) -> int | None:
        """How many it has; None where nobody has counted them."""
        ...

    def read(self) -> Any:
        """What an actor works on. Called in an actor, or ahead of it in a task."""
        ...


@dataclass(frozen=True, kw_only=True)
class Made:
    """What an actor has made of a unit, before it is written."""

    images: int
    rejected: int
    publish: Callable[[], None]
    """Writes it; last the files that say that it is done."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What else is added up in ``run.json``."""


Make = Callable[[Any, Any, AbstractSet[str]], Made]
"""From a unit, what it reads, and the names of the marks that it lacks."""


class Work(Protocol):
    """A job, as every actor of its pool knows it."""

    @property
    def output(self) -> str:
        """URL of the run's folder."""
        ...

    @property
    def marks(self) -> Mapping[str, str]:
        """URLs of folders, by a name: a unit is done once each of them holds its ``UNIT.parquet``."""
        ...

    def start(self, pool: ActorPool, held: lease.Watch) -> Make:
        """Set an actor up. What it writes before it publishes it writes only while the lease is ``held``."""
        ...


AnyUnit = TypeVar("AnyUnit", bound=Unit)
Todo = tuple[AnyUnit, frozenset[str]]
"""A unit, and the names of the marks that it lacks."""


def undone(work: Work, units: Iterable[AnyUnit]) -> list[Todo[AnyUnit]]:
    """Those of the units that are not done."""
    done = {
        mark: {storage.stem(url) for url in storage.list_files(folder, ".parquet")}
        for mark, folder in work.marks.items()
    }
    lacking = ((unit, frozenset(mark for mark, names in done.items() if unit.name not in names)) for unit in units)
    return [(unit, marks) for unit, marks in lacking if marks]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """An attempt at a run, which has a cluster, and counts what it does in the run's ``counts``."""

    run: runs.Run
    pool: ActorPool
    tally: Tally

    def stream(self, work: Work, todo: Sequence[Todo[Any]], label: str, max_rejects: float = 1.0) -> None:
        """Do units, each on one actor of the pool.

        Args:
            work: what the actors do.
            todo: see :func:`undone`.
            label: of the progress display.
            max_rejects: share of the images, in [0, 1]; when more are rejected the work stops.

        Raises:
            StoppedError: more than ``max_rejects`` of the images are rejected.
            LeaseLostError: another run has taken the output over.
        """
        if not todo:
            self.run.counts.update(self.tally.shown())
            return
        known = all(unit.images is not None for unit, _ in todo)
        total = sum(unit.images or 0 for unit, _ in todo) if known else 0
        n = rejected = 0
        try:
            with Progress(label, total=total, unit="images") as progress:
                for row in self._rows(work, todo):
                    self.run.check()
                    self.tally.add(row)
                    n, rejected = n + row["in"], rejected + row["rejected"]
                    note = f"{rejected:,} rejected" if rejected else ""
                    progress.advance(row["in"], note=note, began=row["started"])
                    if n >= ENOUGH:
                        check_rejects(work.output, rejected, n, max_rejects)
        finally:
            self.run.counts.update(self.tally.shown())

    def _rows(self, work: Work, todo: Sequence[Todo[Any]]) -> Iterator[dict[str, Any]]:
        """What the actors say of the units, as they get done: see :class:`UnitActor`."""
        pool = self.pool
        apart = pool.reads == "apart"
        tasks = [read_task(functools.partial(_blocks, unit, marks, apart), None, UNIT_BYTES) for unit, marks in todo]
        read_cpus = cluster.read_cpus(pool.read_cpus, pool.needs) if apart else 0
        actors = min(pool.actors, len(todo))
        done = blocks_of(tasks, name="Units", read_cpus=read_cpus).map_batches(
            UnitActor,
            fn_constructor_args=(ray.put((work, self.run.id, pool)),),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=pool.cpus_per_actor,
            num_gpus=pool.gpus_per_actor,
            compute=ray.data.ActorPoolStrategy(
                min_size=actors,
                max_size=max(actors, min(pool.max_actors or actors, len(todo))),
                initial_size=actors,
                max_tasks_in_flight_per_actor=2,
            ),
        )
        yield from done.iter_rows()


@contextmanager
def attempt(
    run: runs.Run, pool: ActorPool, config: Mapping[str, Any] | None = None, *, shared_filesystem: bool
) -> Iterator[Attempt]:
    """Join or start a cluster, and record an attempt at the run, which is no longer whole, while the block goes on.

    Args:
        run: what the process holds.
        pool: the actors.
        config: what ``run.json`` tells of the attempt beside the pool.
        shared_filesystem: a local output is one that every host sees.

    Raises:
        ValueError: a cluster that is too small, or does not see the output.
    """
    storage.remove(storage.join(run.output, storage.SUCCESS))
    hardware = cluster.connect(pool.needs)
    cluster.check_output(run.output, shared_filesystem=shared_filesystem)
    with run.attempt(hardware, {**(config or {}), **asdict(pool)}):
        yield Attempt(run=run, pool=pool, tally=Tally(run.requests))


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


class UnitActor:
    """Does the units that blocks name or hold, while its attempt holds the output."""

    def __init__(self, reference: ray.ObjectRef[tuple[Work, str, ActorPool]]) -> None:
        """``reference``: the work, which all actors of a node share, the attempt's id, and the pool."""
        work, attempt_id, pool = ray.get(reference)
        pool.set_threads()
        self.held = lease.Watch(work.output, attempt_id)
        self.make = work.start(pool, self.held)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Do one unit.

        Returns:
            One row: ``in``, ``out``, ``rejected`` (images), ``requests``, ``retries``, ``started`` and ``ended``
            (seconds of the clock), and what else the work counts.
        """
        started, before = time.time(), retries.counts()
        self.held.check()
        unit, marks = pickle.loads(block["unit"][0].as_buffer())
        content = pickle.loads(block["content"][0].as_buffer()) if "content" in block.column_names else unit.read()
        made = self.make(unit, content, marks)
        # A straggler of a dead attempt ends here.
        self.held.check_now()
        made.publish()
        row = {
            "in": made.images,
            "out": made.images - made.rejected,
            "rejected": made.rejected,
            **made.counts,
            **retries.since(before),
            "started": started,
            "ended": time.time(),
        }
        return pa.Table.from_pylist([row])


def _blocks(unit: Unit, marks: AbstractSet[str], apart: bool) -> Iterator[Block]:
    """The block of a unit: it names the unit and, where reads run ``apart``, holds what it reads."""
    parts = {"unit": (unit, marks), **({"content": unit.read()} if apart else {})}
    yield pa.table({name: pa.array([pickle.dumps(part, 5)], pa.large_binary()) for name, part in parts.items()})


class BlockReader(Datasource):
    """A Ray Data source of given read tasks."""

    def __init__(self, tasks: Sequence[ReadTask], name: str) -> None:
        super().__init__()
        self._tasks, self._name = tasks, name

    def get_name(self) -> str:
        return self._name

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism, per_task_row_limit=None, data_context=None):  # type: ignore[no-untyped-def]
        return list(self._tasks)


def read_task(read: Callable[[], Iterator[Block]], rows: int | None, size: int) -> ReadTask:
    """A task that reads blocks of so many rows, if that is known, and about ``size`` bytes."""
    return ReadTask(read, BlockMetadata(num_rows=rows, size_bytes=size, exec_stats=None, input_files=None))


def blocks_of(
    tasks: Sequence[ReadTask], *, name: str, read_cpus: float, ordered: int | None = None, ahead: int | None = None
) -> Dataset:
    """What read tasks read: each task's blocks joined, as they come.

    Args:
        tasks: see :func:`read_task`.
        name: of the stage.
        read_cpus: of a task. With 0 the tasks wait for no CPU, so that actors may take all; then two run at a time.
        ordered: bytes of a block; blocks stay as they are then, in the order of their tasks.
        ahead: bytes of blocks that lie ready, at most.
    """
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = ordered is not None
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=ahead)
    context.target_max_block_size = ordered
    context.enable_progress_bars = False
    with ray.data.DataContext.current(context):
        return ray.data.read_datasource(
            BlockReader(tasks, name),
            num_cpus=read_cpus,
            concurrency=None if read_cpus else min(2, len(tasks)) or None,
            override_num_blocks=len(tasks),
        )
