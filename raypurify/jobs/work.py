"""Planned units of work, which evaluation, attack, certificates and cleaning are made of.

A job says where it is written that a unit is done, and what is made of one: see :class:`Work`. Each file is written at
once, under a name that follows from the plan: a file that is there is whole, a retried unit overwrites itself, and a
run that is given again does what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from raypurify import storage
from raypurify.jobs.resources import ActorPool
from raypurify.runs import lease, stages
from raypurify.storage import retries


class Unit(Protocol):
    """A planned part of a job: small, and picklable."""

    @property
    def name(self) -> str:
        """The name of the files that are made of the unit."""
        ...

    @property
    def images(self) -> int | None:
        """How many images the unit has; None where nobody has counted them."""
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
    """Writes what was made. The files that say that the unit is done come last."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Other counts that are added up in ``run.json``."""


Make = Callable[[Any, Any, AbstractSet[str]], Made]
"""Makes the outputs of a unit: takes the unit, what it reads, and the names of the marks that it lacks."""
Advance = Callable[[Any, AbstractSet[str]], Any]
"""From what a unit reads, or the stage before has made of it, and the names of the marks that it lacks: what the next
stage is given."""


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

    @property
    def stages(self) -> Mapping[str, ActorPool]:
        """Names, in their order, of stages that pools of their own do on a cluster before the last one: mostly none."""
        ...

    def start(self, pool: ActorPool, held: lease.Watch) -> Make:
        """Set an actor up. What it writes before it publishes it writes only while the lease is ``held``."""
        ...


class StagedWork(Work, Protocol):
    """A job that has ``stages``."""

    def start_stage(self, stage: str, pool: ActorPool) -> Advance:
        """Set an actor of a stage up."""
        ...


AnyUnit = TypeVar("AnyUnit", bound=Unit)
Todo = tuple[AnyUnit, frozenset[str]]
"""A unit that has to be done, and the names of the marks that it lacks."""


def undone(work: Work, units: Iterable[AnyUnit]) -> list[Todo[AnyUnit]]:
    """The units that are not done yet."""
    done = {
        mark: {storage.stem(url) for url in storage.list_files(folder, ".parquet")}
        for mark, folder in work.marks.items()
    }
    lacking = ((unit, frozenset(mark for mark, names in done.items() if unit.name not in names)) for unit in units)
    return [(unit, marks) for unit, marks in lacking if marks]


class UnitWorker:
    """Does units one after the other, while its attempt holds the output."""

    def __init__(self, work: Work, pool: ActorPool, attempt: str) -> None:
        """``attempt`` is the id of the attempt."""
        pool.set_threads()
        self.held = lease.Watch(work.output, attempt)
        self.make = work.start(pool, self.held)

    def do(
        self, unit: Unit, marks: AbstractSet[str], content: Any = None, spent: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Do one unit.

        Args:
            unit: which.
            marks: names of those that it lacks.
            content: what it reads, where that was read ahead, or what stages before have made of it.
            spent: what those tell.

        Returns:
            ``in``, ``out``, ``rejected`` (images), ``requests``, ``retries``, ``started`` and ``ended`` (seconds of the
            clock), ``seconds_STAGE`` for each of ``stages.STAGES``, and what else the work counts.
        """
        started, requests, seconds = time.time(), retries.counts(), stages.seconds()
        self.held.check()
        if content is None:
            with stages.spending("read"):
                content = unit.read()
        made = self.make(unit, content, marks)
        # A straggler of a dead attempt ends here.
        self.held.check_now()
        with stages.spending("write"):
            made.publish()
        return {
            "in": made.images,
            "out": made.images - made.rejected,
            "rejected": made.rejected,
            **made.counts,
            **added(spent, {**retries.since(requests), **stages.since(seconds), "started": started}),
            "ended": time.time(),
        }


class StageWorker:
    """Does a stage of units, one after the other."""

    def __init__(self, work: StagedWork, stage: str, pool: ActorPool) -> None:
        pool.set_threads()
        self.advance = work.start_stage(stage, pool)

    def do(
        self, unit: Unit, marks: AbstractSet[str], content: Any, spent: Mapping[str, Any] | None
    ) -> tuple[Any, dict[str, Any]]:
        """What the next stage is given of a unit, and what this stage and those before have spent on it.

        Args:
            unit: which.
            marks: names of those that it lacks.
            content: what the stage before has made, or what was read ahead; None: this stage reads.
            spent: see :func:`added`.
        """
        started, requests, seconds = time.time(), retries.counts(), stages.seconds()
        if content is None:
            with stages.spending("read"):
                content = unit.read()
        content = self.advance(content, marks)
        return content, added(spent, {**retries.since(requests), **stages.since(seconds), "started": started})


def added(spent: Mapping[str, Any] | None, more: Mapping[str, Any]) -> dict[str, Any]:
    """What stages have spent on a unit, and another has: sums, and when the first one ``started``."""
    if spent is None:
        return dict(more)
    return {**{name: value + spent[name] for name, value in more.items()}, "started": spent["started"]}
