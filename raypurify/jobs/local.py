"""The engine of this process: plain torch, without Ray, one thing after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from raypurify import runs, storage
from raypurify.data.formats import parquet
from raypurify.jobs.engine import Engine, UnitRows
from raypurify.jobs.monitor import Monitor
from raypurify.jobs.resources import ActorPool, Needs, TrainingResources
from raypurify.jobs.work import Todo, UnitWorker, Work
from raypurify.storage import retries
from raypurify.training import saved
from raypurify.training.order import EpochOrder, epoch_batches
from raypurify.training.worker import FINAL_ERRORS, PLAIN_ERRORS, Job, Worker


class LocalEngine(Engine):
    """The engine that is this process alone."""

    def check_room(self, *needs: Needs) -> None:
        if needs[0].gpus and not torch.cuda.is_available():
            flag = "no --use-gpu" if needs[0].kind == "worker" else "--gpus-per-actor 0"
            raise ValueError(f"a GPU is asked for, and torch finds none on this machine. Give {flag}")

    def connect(self, *needs: Needs) -> dict[str, Any]:
        self.check_room(*needs)
        return {**runs.machine(), "nodes": 1, "cpus": os.cpu_count(), "gpus": torch.cuda.device_count()}

    def check_output(self, output: str, *, shared_filesystem: bool) -> None:
        """Take any output, since one process writes."""

    def do(self, work: Work, todo: Sequence[Todo[Any]], pool: ActorPool, attempt: str) -> UnitRows:
        worker = UnitWorker(work, pool, attempt)
        for unit, marks in todo:
            # The requests are this process' own, which the run counts already.
            yield {**worker.do(unit, marks), **dict.fromkeys(retries.counts(), 0)}

    def map(
        self, needs: Needs, function: Callable[..., Any], shared: Sequence[Any], each: Sequence[Any]
    ) -> Generator[Any, None, None]:
        return (function(*shared, last) for last in each)

    def fit(self, job: Job, resources: TrainingResources, run: runs.Run, monitor: Monitor) -> None:
        resources.set_threads()
        try:
            _fit(Worker(job, 0, 1, resources.device), resources, run, monitor)
        except PLAIN_ERRORS as error:
            raise runs.StoppedError(str(error)) from error
        except FINAL_ERRORS as error:
            raise runs.FailedError(f"{type(error).__name__}: {error}") from error
        finally:
            parquet.keep_row_groups(0)


def _fit(worker: Worker, resources: TrainingResources, run: runs.Run, monitor: Monitor) -> None:
    """Train what is left. The last two checkpoints stay, as with Ray Train, whose list of them goes."""
    folder = storage.join(run.output, "checkpoints")
    last = saved.latest(folder)
    if last is not None:
        worker.restore(storage.join(folder, last))
        monitor.resumed(worker.epoch, worker.steps)
    kept = [] if last is None else [last]
    storage.clear(folder, keep=kept)
    for metrics in worker.epochs(_batches, monitor.progressed, resources.checkpoint_minutes):
        if metrics is not None:
            monitor.trained(metrics)
        run.check()
        name = f"checkpoint_{worker.epoch:06d}" + (f"_{worker.steps:09d}" if worker.steps else "")
        worker.save(storage.join(folder, name))
        kept = [*kept[-1:], name]
        storage.clear(folder, keep=kept)


def _batches(order: EpochOrder, epochs: Sequence[int], first: int) -> Iterator[dict[str, np.ndarray]]:
    return chain.from_iterable(epoch_batches(order, epoch, first if epoch == epochs[0] else 0) for epoch in epochs)


build = LocalEngine
