"""What a job asks of those who do its work, and which of the two engines these are."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol, cast

from raypurify import runs
from raypurify.jobs.monitor import Monitor
from raypurify.jobs.resources import ActorPool, Needs, TrainingResources
from raypurify.jobs.work import Todo, Work
from raypurify.training.worker import Job

UnitRows = Generator[dict[str, Any], None, None]
"""A row for each unit, once it is done, as :meth:`raypurify.jobs.work.UnitWorker.do` returns it."""


class Engine(Protocol):
    """A Ray cluster (:mod:`raypurify.distributed.engine`), or this process (:mod:`raypurify.jobs.local`)."""

    def check_room(self, *needs: Needs) -> None:
        """Hold a job against what is there without it.

        Raises:
            ValueError: see :meth:`connect`.
        """
        ...

    def connect(self, *needs: Needs) -> dict[str, Any]:
        """Have ready what a job needs, each of its pools: the hardware, for ``run.json``.

        Raises:
            ValueError: there is too little of it, and no more will come.
        """
        ...

    def check_output(self, output: str, *, shared_filesystem: bool) -> None:
        """Refuse an output that not all who write to it would see.

        Raises:
            ValueError: a local path, and several hosts.
        """
        ...

    def do(self, work: Work, todo: Sequence[Todo[Any]], pool: ActorPool, attempt: str) -> UnitRows:
        """Do units, in whatever order.

        Args:
            work: what is done.
            todo: see :func:`raypurify.jobs.work.undone`.
            pool: who does it.
            attempt: its id.
        """
        ...

    def map(
        self, needs: Needs, function: Callable[..., Any], shared: Sequence[Any], each: Sequence[Any]
    ) -> Generator[Any, None, None]:
        """Call a function several times, where it has what one actor or worker has.

        Args:
            needs: those of the actors or workers.
            function: what is called.
            shared: the first arguments of every call.
            each: the last argument of each call.

        Yields:
            What it returns, in the order of ``each``, as it comes.
        """
        ...

    def fit(self, job: Job, resources: TrainingResources, run: runs.Run, monitor: Monitor) -> None:
        """Train to the end, from the last checkpoint of the run if there is one; the last one is then of the end.

        Args:
            job: what is trained.
            resources: who trains.
            run: on which output.
            monitor: is told as it goes, in this process.

        Raises:
            raypurify.runs.StoppedError: the training cannot go on.
        """
        ...


def engine_of(resources: ActorPool | TrainingResources) -> Engine:
    """The engine that does the work. That of Ray is loaded by its name, as plugins are: nothing here needs Ray."""
    module = "raypurify.jobs.local" if resources.local else "raypurify.distributed.engine"
    return cast(Engine, importlib.import_module(module).build())
