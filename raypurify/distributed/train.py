"""Training on Ray Train: data-parallel workers, each a :class:`raypurify.training.worker.Worker`."""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray._private import state
from ray.actor import ActorHandle

from raypurify import runs, storage
from raypurify.distributed import board, cluster, snapshots
from raypurify.distributed.stream import training_stream
from raypurify.jobs.monitor import Monitor
from raypurify.jobs.resources import TrainingResources
from raypurify.training.order import EpochOrder
from raypurify.training.worker import FINAL_ERRORS, PLAIN_ERRORS, Job, Worker

POLL_SECONDS = "0.5"
"""Between looks of Ray Train's controller at its workers, which wait with an epoch's report for the next look. A look
that takes longer is waited for at the next one."""
RESIZE_SECONDS = 30.0
"""Between looks at whether a group of workers may grow."""
DEATH = 10
"""Seconds that workers are given to die; they take a fraction of one."""


def fit(job: Job, resources: TrainingResources, output: str, monitor: Monitor) -> None:
    """See :meth:`raypurify.jobs.engine.Engine.fit`.

    Raises:
        ray.train.v2.api.exceptions.TrainingFailedError: workers failed more than ``max_failures`` times.
    """
    # A group that grows may take all CPUs.
    read_cpus = 0 if resources.max_workers else cluster.read_cpus(resources.read_cpus, resources.needs)
    snapshots.mend(storage.join(output, "checkpoints"))
    resources = dataclasses.replace(resources, read_cpus=read_cpus)
    with board.followed(monitor) as told:
        _run(_trainer({"job": job, "resources": resources, "told": told}, resources, output))


class StopAtFinalErrors(ray.train.UserCallback):
    """Ends a run whose failure would come again; Ray Train by itself would start its workers ``max_failures`` times."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _in_controller, ()

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            cause = getattr(error, "_base_exc", error)  # what the worker raised, in Ray Train's wrapping
            is_plain = isinstance(cause, PLAIN_ERRORS) or getattr(cause, "errno", None) in storage.UNWRITABLE
            if is_plain or isinstance(cause, FINAL_ERRORS):
                _silence_ray_train()
                raise runs.StoppedError(str(cause)) if is_plain else _failed(cause)


def _failed(cause: Exception) -> runs.FailedError:
    """What a worker raised that nobody foresaw, with its traceback."""
    failed = runs.FailedError(f"{type(cause).__name__}: {cause}")
    failed.workers_said = getattr(cause, "workers_said", "")  # type: ignore[attr-defined]
    return failed


SLOW_MACHINE = "ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client"
"""Where Ray Train warns, by a traceback, that a busy machine was slow to answer; by its own words no fault."""


def _in_controller() -> StopAtFinalErrors:
    """The callback, when it has come to the process of Ray Train's controller."""
    logging.getLogger(SLOW_MACHINE).setLevel(logging.ERROR)
    return StopAtFinalErrors()


def _silence_ray_train() -> None:
    """Keep Ray Train, in this process, from printing tracebacks of an error that the driver will tell in one line."""
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)


class _Trainer(ray.train.torch.TorchTrainer):
    """Ray's trainer, that leaves signals, and other clusters on this host, to themselves."""

    controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        # Ray's handler stays in place for good, and ends the process with status 0.
        self.controller = controller

    def _create_default_callbacks(self) -> list[Any]:
        # The cleaner looks for a cluster on this host: where there are several, it prints tracebacks, or asks another.
        # That of datasets starts a process for those that Ray Train is given; it is given none.
        unused = ("PlacementGroupCleaner", "DatasetsCallback")
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # Ray types it as its older trainer
        return [callback for callback in callbacks if not type(callback).__name__.startswith(unused)]


def _run(trainer: _Trainer) -> None:
    """Train to the end. An interrupt ends the workers, so that they write nothing after the lease is released.

    Raises:
        runs.StoppedError, runs.FailedError: an error that would come again.
    """
    # Ray's watcher of nodes that a cloud takes away tells workers, of which none of ours asks.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_SECONDS)
    try:
        trainer.fit()
    except KeyboardInterrupt:
        if trainer.controller is not None:
            with suppress(ray.exceptions.RayError):
                _end(trainer.controller)
        raise
    except ray.train.ControllerError as error:
        failure = error.controller_failure
        if isinstance(failure, runs.StoppedError | runs.FailedError):
            raise failure from None
        if getattr(failure, "errno", None) in storage.UNWRITABLE:
            raise runs.StoppedError(f"the checkpoints cannot be written: {failure}") from None
        raise


def _end(controller: ActorHandle) -> None:
    """Kill Ray Train's controller, and wait until its workers, which Ray kills with it, are dead.

    Asked to abort, it would first wait for workers that are starting, and print tracebacks.
    """
    ray.kill(controller)
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    until = time.monotonic() + DEATH
    while time.monotonic() < until:
        alive = state.actors(job_id=job, actor_state_name="ALIVE")
        if all(actor["ActorClassName"] != "RayTrainWorker" for actor in alive.values()):
            return
        time.sleep(0.05)


def _trainer(loop: dict[str, Any], resources: TrainingResources, output: str) -> _Trainer:
    fs, path = storage.filesystem(output)
    workers: Any = resources.workers
    if resources.max_workers is not None:
        workers = resources.workers, resources.max_workers
    scaling = ray.train.ScalingConfig(  # type: ignore[call-arg]  # Ray types it as the ScalingConfig of its older Train
        num_workers=workers,
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        use_gpu=resources.use_gpu,
        resources_per_worker={"CPU": resources.cpus_per_worker, **({"GPU": 1} if resources.use_gpu else {})},
    )
    run_config = ray.train.RunConfig(  # type: ignore[call-arg]  # Ray types it as the RunConfig of its older Train
        name="checkpoints",
        storage_path=path,
        storage_filesystem=None if storage.is_local(output) else PyFileSystem(FSSpecHandler(fs)),
        failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        callbacks=[StopAtFinalErrors()],  # type: ignore[list-item]  # as above
    )
    return _Trainer(_work, train_loop_config=loop, scaling_config=scaling, run_config=run_config)


def _work(loop: dict[str, Any]) -> None:
    """What each worker runs."""
    try:
        _train_part(**loop)
    except PLAIN_ERRORS as error:
        _silence_ray_train()
        cause = getattr(error, "cause", None)  # of an error in a task that reads, whose own text is a traceback
        raise (cause if isinstance(cause, PLAIN_ERRORS) else error) from None
    except FINAL_ERRORS as error:
        _silence_ray_train()
        error.workers_said = traceback.format_exc()  # type: ignore[union-attr]  # it is lost on the way to the driver
        raise


def _train_part(job: Job, resources: TrainingResources, told: ActorHandle) -> None:
    cluster.quiet()
    resources.set_threads()
    context = ray.train.get_context()
    worker = Worker(
        job,
        rank=context.get_world_rank(),
        workers=context.get_world_size(),
        device=str(ray.train.torch.get_device()),
    )
    tell = board.Teller(told if worker.rank == 0 else None)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            worker.restore(folder)
        tell("resumed", worker.epoch, worker.steps)
    for metrics in worker.epochs(partial(_batches, resources.read_cpus), tell.progressed, resources.checkpoint_minutes):
        if metrics is not None:
            tell("trained", metrics)
        if worker.rank == 0:
            with tempfile.TemporaryDirectory() as folder:
                worker.save(folder)
                ray.train.report(metrics or {}, checkpoint=ray.train.Checkpoint.from_directory(folder))
        else:
            ray.train.report(metrics or {})


def _batches(read_cpus: float, order: EpochOrder, epochs: Sequence[int], first: int) -> Iterator[dict[str, np.ndarray]]:
    stream = training_stream(order, epochs, first, read_cpus)
    return iter(stream.iterator().iter_batches(batch_size=len(order.own), batch_format="numpy", prefetch_batches=2))
