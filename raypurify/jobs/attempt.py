"""Attempts at a run of planned units: they are done on an engine, counted, shown, and stopped where too many are bad.

The driver sees one small row for each unit, never an image.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from raypurify import runs, storage
from raypurify.jobs.engine import Engine, engine_of
from raypurify.jobs.resources import ActorPool, TrainingResources
from raypurify.jobs.work import Todo, Work
from raypurify.report import formats
from raypurify.runs import schema
from raypurify.runs.log import LogFlags
from raypurify.runs.progress import Progress
from raypurify.runs.reasons import counted
from raypurify.runs.tally import Tally

FINISHED = "already finished: nothing is left to do"
"""What a job says of a run that is whole."""
ENOUGH = 1000
"""How many images are done before the share of rejects is judged."""
LATEST = 16
"""How many tables of rejects a message takes its reasons from."""


@dataclass(frozen=True, kw_only=True)
class JobArguments:
    """Flags that every job on a dataset has."""

    destination: runs.Destination
    log: LogFlags = field(default_factory=LogFlags)
    max_rejects: float = 0.1
    """Stop when more than this share of the images cannot be decoded. It is in [0, 1]; with 1 the run never stops."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_rejects <= 1:
            raise ValueError(f"max_rejects must be in [0, 1]; got {self.max_rejects!r}")

    @property
    def usual(self) -> dict[str, Any]:
        """What the function of every job takes of these, by its names."""
        return {"max_rejects": self.max_rejects, **asdict(self.destination)}


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """An attempt at a run on an engine, which counts what it does in the run's ``counts``."""

    run: runs.Run
    pool: ActorPool
    work: Work
    engine: Engine
    tally: Tally

    def stream(self, todo: Sequence[Todo[Any]], label: str, max_rejects: float = 1.0) -> None:
        """Do units.

        Args:
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
            with (
                Progress(label, total=total, unit="images") as progress,
                closing(self.engine.do(self.work, todo, self.pool, self.run.id)) as rows,
            ):
                for row in rows:
                    self.run.check()
                    self.tally.add(row)
                    n, rejected = n + row["in"], rejected + row["rejected"]
                    note = f"{rejected:,} rejected" if rejected else ""
                    progress.advance(row["in"], note=note, began=row["started"])
                    if n >= ENOUGH:
                        check_rejects(self.work.output, rejected, n, max_rejects)
        finally:
            self.run.counts.update(self.tally.shown())

    def judge(self, images: int, max_rejects: float) -> int:
        """Count the rejects of the whole run, all of whose units are done, in its ``counts`` too.

        Raises:
            StoppedError: of so many images, more than the share ``max_rejects`` are rejected.
        """
        self.run.counts["rejected"] = found = count_rejects(self.run.output)
        check_rejects(self.run.output, found, images, max_rejects)
        return found

    def map(
        self, function: Callable[..., Any], shared: Sequence[Any], each: Sequence[Any], label: str, unit: str
    ) -> Generator[Any, None, None]:
        """:meth:`raypurify.jobs.engine.Engine.map`, shown as a progress of so many ``unit``."""
        with (
            Progress(label, total=len(each), unit=unit, passing=True) as progress,
            closing(self.engine.map(self.pool.needs, function, shared, each)) as results,
        ):
            for result in results:
                self.run.check()
                progress.advance(1)
                yield result


def is_done(run: runs.Run, todo: Sequence[Todo[Any]], also: Callable[[], bool] = lambda: True) -> bool:
    """Whether nothing is left to do of a run.

    Args:
        run: what the process holds.
        todo: see :func:`raypurify.jobs.work.undone`.
        also: whether what else belongs to the run is there. It is asked of a run that is finished, all of whose units
            are done.
    """
    return run.finished and not todo and also()


def count_rejects(output: str) -> int:
    """How many images of a run are rejected."""
    urls = storage.list_files(storage.join(output, "rejects"), ".parquet")
    return len(storage.read_tables(urls, schema.REJECTS))


def ready(
    pools: Sequence[ActorPool] | Sequence[TrainingResources], output: str, *, shared_filesystem: bool
) -> tuple[Engine, dict[str, Any]]:
    """The engine with what a job needs, and its hardware, for ``run.json``. The output is not touched.

    Args:
        pools: who does the work, and who does its other stages.
        output: URL of the run's folder.
        shared_filesystem: a local output is one that every host sees.

    Raises:
        ValueError: a cluster that is too small, or does not see the output.
    """
    engine = engine_of(pools[0])
    hardware = engine.connect(*(pool.needs for pool in pools))
    engine.check_output(output, shared_filesystem=shared_filesystem)
    return engine, hardware


@contextmanager
def hold(
    pools: Sequence[ActorPool] | Sequence[TrainingResources],
    output: str,
    identity: Mapping[str, Any],
    *,
    overwrite: bool,
    shared_filesystem: bool,
) -> Iterator[runs.Run]:
    """:func:`raypurify.runs.hold`, by a job for which there is room: else nothing of an old run is removed.

    Raises:
        ValueError: see :func:`ready` and :func:`raypurify.runs.hold`.
    """
    if overwrite:
        ready(pools, output, shared_filesystem=shared_filesystem)
    with runs.hold(output, identity, overwrite=overwrite) as run:
        yield run


@contextmanager
def attempt_at(
    run: runs.Run,
    pool: ActorPool,
    work: Work,
    config: Mapping[str, Any] | None = None,
    *,
    shared_filesystem: bool,
) -> Iterator[Attempt]:
    """Set the engine up, and record an attempt at the run, which is no longer whole, while the block goes on.

    Args:
        run: what the process holds.
        pool: who does the work.
        work: what is done, and which of its stages have pools of their own.
        config: what ``run.json`` tells of the attempt beside the pool.
        shared_filesystem: a local output is one that every host sees.

    Raises:
        ValueError: a cluster that is too small, or does not see the output.
    """
    engine, hardware = ready([pool, *work.stages.values()], run.output, shared_filesystem=shared_filesystem)
    storage.remove(storage.join(run.output, storage.SUCCESS))
    stages = {f"{name}_pool": asdict(own) for name, own in work.stages.items()}
    with run.attempt(hardware, {**(config or {}), **asdict(pool), **stages}):
        yield Attempt(run=run, pool=pool, work=work, engine=engine, tally=Tally(run.requests))


def check_rejects(output: str, rejected: int, n: int, most: float) -> None:
    """Stop where ``rejected`` of ``n`` images are more than the share ``most``.

    Raises:
        StoppedError: with the reasons.
    """
    if rejected > most * n:
        folder = storage.join(output, "rejects")
        reasons = islice(counted(storage.list_files(folder, ".parquet")[-LATEST:]).items(), 5)
        some = ", ".join(f"{count:,} x {reason}" for reason, count in reasons)
        raise runs.StoppedError(
            f"{rejected:,} of {n:,} images are rejected, more than --max-rejects={most} allows. Reasons so far: "
            f"{formats.visible(some)}. {folder} has each. What is done stays done: give a "
            "higher --max-rejects to go on"
        )
