"""The engine of a Ray cluster."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Sequence
from typing import Any

import ray

from raypurify import runs
from raypurify.distributed import cluster, train, units
from raypurify.distributed.metrics import Metrics
from raypurify.jobs import own
from raypurify.jobs.engine import Engine, UnitRows
from raypurify.jobs.monitor import Monitor
from raypurify.jobs.resources import ActorPool, Needs, TrainingResources
from raypurify.jobs.work import Todo, Work
from raypurify.training.worker import Job


class RayEngine(Engine):
    """Actors of Ray Data, workers of Ray Train."""

    def check_room(self, *needs: Needs) -> None:
        cluster.check_room(*needs)

    def connect(self, *needs: Needs) -> dict[str, Any]:
        hardware = cluster.connect(*needs)
        for name in own.modules():
            # Workers need not be able to import them.
            ray.cloudpickle.register_pickle_by_value(importlib.import_module(name))
        return hardware

    def check_output(self, output: str, *, shared_filesystem: bool) -> None:
        cluster.check_output(output, shared_filesystem=shared_filesystem)

    def do(self, work: Work, todo: Sequence[Todo[Any]], pool: ActorPool, attempt: str) -> UnitRows:
        metrics = Metrics(work.output, len(todo))
        with cluster.telling():
            for row in units.rows(work, todo, pool, attempt):
                metrics.add(row)
                yield row

    def map(
        self, needs: Needs, function: Callable[..., Any], shared: Sequence[Any], each: Sequence[Any]
    ) -> Generator[Any, None, None]:
        task = ray.remote(num_cpus=needs.cpus, num_gpus=needs.gpus, resources=dict(needs.custom))(function)
        with cluster.telling():
            held = [ray.put(argument) for argument in shared]
            for called in [task.remote(*held, last) for last in each]:
                yield ray.get(called)

    def fit(self, job: Job, resources: TrainingResources, run: runs.Run, monitor: Monitor) -> None:
        with cluster.telling():
            train.fit(job, resources, run.output, monitor)


build = RayEngine
