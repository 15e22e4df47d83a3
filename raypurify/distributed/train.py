"""Training on Ray Train: data-parallel workers around :mod:`raypurify.training`'s step."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import safetensors.torch
import torch
import torch.distributed
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray._private import state
from ray.actor import ActorHandle
from torch import Tensor, nn

from raypurify import models, plugins, runs, storage
from raypurify.data import DataError, Source, check_ids, labels_of, narrowed, open_source, shape_of, spread
from raypurify.distributed import cluster, snapshots
from raypurify.distributed.arithmetic import compute_on_cpus, drop_pages
from raypurify.distributed.global_batch import average, share_weights, with_global_batch
from raypurify.distributed.order import (
    LANES,
    ORDER,
    EpochOrder,
    first_batches,
    held_out_rows,
    hold_out,
    training_stream,
)
from raypurify.evaluation import preflight
from raypurify.report import formats
from raypurify.runs import schema
from raypurify.runs.progress import print_table
from raypurify.seeds import seed_of
from raypurify.storage import checkpoints
from raypurify.storage.published import published, redacted
from raypurify.training import Batch, TrainingConfig, batch_of, fast_precision
from raypurify.training.objectives import (
    ClassifierObjective,
    DivergedError,
    Objective,
    PurifierObjective,
    Setup,
    build_attacks,
    build_pairs,
    check_finite,
    train_step,
    validate,
)


@dataclass(frozen=True, kw_only=True)
class TrainingResources:
    """Who does the work. None of it changes what is computed, but for rounding."""

    workers: int = 1
    """Data-parallel workers: 1, 2, 4 or 8. Batch norms and dropouts of torch.nn see the global batch: any number trains
    the same network."""
    use_gpu: bool = False
    """One GPU a worker (nccl) instead of CPUs (gloo)."""
    cpus_per_worker: int = 2
    """CPUs, and threads of arithmetic, of a worker."""
    read_cpus: float = 0.5
    """CPUs of a task that reads images; may be a fraction. Where the workers leave no CPU free, or with 0, such tasks
    wait for none, and run two at a time."""
    max_failures: int = 3
    """Lost workers after which a run fails; each time it goes on from the last epoch's checkpoint."""

    def __post_init__(self) -> None:
        if self.workers < 1 or LANES % self.workers:
            raise ValueError(f"workers must divide {LANES}: 1, 2, 4 or 8; got {self.workers!r}")
        if self.cpus_per_worker < 1 or self.read_cpus < 0:
            raise ValueError(
                "cpus_per_worker must be at least 1, read_cpus at least 0; "
                f"got {self.cpus_per_worker}, {self.read_cpus}"
            )

    @property
    def needs(self) -> cluster.Needs:
        """What the workers take."""
        gpus = 1 if self.use_gpu else 0
        return cluster.Needs(kind="worker", count=self.workers, cpus=self.cpus_per_worker, gpus=gpus)


@dataclass(frozen=True, kw_only=True)
class TrainingArguments:
    """Flags of the training jobs."""

    training: TrainingConfig
    resources: TrainingResources = TrainingResources()
    destination: runs.Destination
    max_rejects: float = 0.1
    """Stop when more than this share of the images cannot be decoded, in [0, 1]; 1: never."""
    dry_run: bool = False
    """Take two steps, estimate the time, and write nothing."""

    def __post_init__(self) -> None:
        runs.check_max_rejects(self.max_rejects)


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker is told: the configuration, the data, the network, where it starts, and a purifier's victim."""

    config: TrainingConfig
    resources: TrainingResources
    source: Source
    """All the training split, before the limit."""
    training: Source
    held_out: Source
    max_rejects: float
    """Share of the images of the data that may be rejected."""
    about: tuple[str, ...]
    """What is printed of the data before the work."""
    image_shape: tuple[int, int, int]
    network: plugins.Spec
    initial: models.Model | None
    victim: models.Model | None

    @property
    def kind(self) -> models.Kind:
        return "classifier" if self.victim is None else "purifier"

    def order(self, rank: int, workers: int) -> EpochOrder:
        """The order in which a worker reads the training rows."""
        return EpochOrder(
            source=self.training,
            image_shape=self.image_shape,
            seed=self.config.seed,
            batch=self.config.batch,
            rank=rank,
            workers=workers,
        )

    def checkpoint_config(self) -> dict[str, Any]:
        """``config.json`` of the model."""
        victim = self.victim
        return {
            "format": 1,
            "kind": self.kind,
            "plugin": self.network.name,
            "params": self.network.params,
            "data": self.source.name,
            "image_shape": self.image_shape,
            "classes": _count(self.source.classes),
            "class_names": None if isinstance(self.source.classes, int) else list(self.source.classes),
            "trained_on": dataclasses.asdict(self.source.origin),
            "trained_for": None if victim is None else {"classifier": victim.name, "sha256": victim.sha256},
            "training": redacted(dataclasses.asdict(self.config)),
        }


def prepare(config: TrainingConfig, resources: TrainingResources, max_rejects: float = 1.0) -> Job:
    """Resolve names, read headers, labels and weights: everything that can be wrong, before any work.

    Raises:
        ValueError, FileNotFoundError: unknown names, unreadable data or weights.
    """
    source = open_source(config.data, split="train")
    if not source.classes:
        raise ValueError(f"{config.data}: a training needs labels, and these images have none")
    victim = None if config.classifier is None else models.load("classifier", config.classifier)
    build_attacks(config.attacks)
    build_pairs(config.train_against)
    kind: models.Kind = "classifier" if victim is None else "purifier"
    initial = None if config.initial is None else models.load(kind, config.initial)
    # A purifier to start from knows no classes: those of its own data do not bind this training's.
    classifiers = [model for model in (victim, initial) if model is not None and model.kind == "classifier"]
    source = preflight.matched(source, classifiers)
    training, held_out, about = _shared_out(source, config)
    shape = shape_of(training)
    if victim is not None:
        preflight.check_network(victim, source, labels_of(training), shape)
    network = models.shaped_for(kind, config.model, shape, _count(source.classes))
    built = plugins.build(models.PACKAGES[kind], network)
    if initial is not None and initial.spec != network:
        raise ValueError(f"initial: {config.initial} holds {initial.spec}, and this training is of {network}")
    if kind == "purifier" and not hasattr(built, "training_loss") and not models.beside(kind, network, "objective"):
        raise ValueError(
            f"{config.model}: this purifier has nothing to train; give one with a training_loss, or with an objective "
            "in its file"
        )
    out = preflight.tried(built, kind, config.model, shape)
    if kind == "classifier" and out.shape[1] != _count(source.classes):
        raise ValueError(f"{config.model}: it knows {out.shape[1]} classes, the data have {_count(source.classes)}")
    job = Job(
        config=config,
        resources=resources,
        source=source,
        training=training,
        held_out=held_out,
        max_rejects=max_rejects,
        about=about,
        image_shape=shape,
        network=network,
        initial=initial,
        victim=victim,
    )
    job.order(0, resources.workers)
    return job


def _shared_out(source: Source, config: TrainingConfig) -> tuple[Source, Source, tuple[str, ...]]:
    """The rows that are trained on, those that are held out, and what is to be said of them.

    Raises:
        DataError: labels that no network can learn, or ids that are not unique.
    """
    labels = labels_of(source)
    check_ids(source)
    preflight.check_trainable(source, labels)
    if config.limit is not None and config.limit < source.rows:
        rows = spread(labels, config.limit, seed_of("limit"))
        source, labels = narrowed(source, rows), labels[rows]
    training, held_out = hold_out(source, labels, config.validation, config.seed)
    about = [f"{preflight.described(source, labels)}; {held_out.rows:,} held out"]
    missing = preflight.missing_classes(source, labels_of(training), "training")
    if held_out.rows:
        missing += preflight.missing_classes(source, labels_of(held_out), "held-out")
    return training, held_out, (*about, *(f"warning: {text}" for text in missing))


def main(arguments: TrainingArguments) -> None:
    """Train a purifier against attacks on a classifier, or a classifier itself, data-parallel on Ray Train."""
    if arguments.dry_run:
        found = dry_run(arguments.training, arguments.resources, arguments.max_rejects)
        print_table(pa.Table.from_pylist([found]))
        return
    model = train(
        arguments.training,
        arguments.resources,
        max_rejects=arguments.max_rejects,
        **dataclasses.asdict(arguments.destination),
    )
    print(f"model: {model}")


def dry_run(config: TrainingConfig, resources: TrainingResources, max_rejects: float = 1.0) -> dict[str, Any]:
    """Take two steps in this process, as one of the workers would, and estimate the time; nothing is written.

    Raises:
        ValueError, FileNotFoundError: bad input, or a cluster that is joined, and is too small.
    """
    job = prepare(config, resources, max_rejects)
    print("\n".join(job.about))
    cluster.check_room(resources.needs)
    device = "cuda" if resources.use_gpu and torch.cuda.is_available() else "cpu"
    worker = Worker(job, 0, resources.workers, device)
    for step, rows in enumerate(islice(first_batches(worker.order), 2)):
        began = time.perf_counter()
        loss = worker.step(step, rows)[0]["loss"].item()
        seconds = time.perf_counter() - began  # of the last step: the first one warms up
    steps = config.epochs * worker.order.steps
    return {
        "images": job.training.rows,
        "shape": "x".join(map(str, job.image_shape)),
        "classes": _count(job.source.classes),
        "steps": steps,
        "workers": resources.needs.told(),
        "tried": f"{step + 1} steps on {device}",
        "rejected": len(worker.rejects),
        "loss": loss,
        "images_per_second": config.batch / seconds,
        "estimated": formats.duration(steps * seconds),
    }


def train(
    config: TrainingConfig,
    resources: TrainingResources,
    output: str,
    *,
    max_rejects: float = 1.0,
    overwrite: bool = False,
    shared_filesystem: bool = False,
) -> str:
    """Train a model and write the run's folder; goes on where an earlier attempt stopped.

    Args:
        config: what is trained.
        resources: who does it.
        output: URL of the run's folder.
        max_rejects: share of the images, in [0, 1]; when more cannot be decoded the training stops.
        overwrite: start afresh.
        shared_filesystem: a local output is one that every host sees.

    Returns:
        URL of the trained model, ``OUTPUT/model``.

    Raises:
        ValueError: bad input, or an output that belongs to another run, or that one writes to.
        runs.StoppedError: the training cannot go on: it diverged, too many images are rejected, or a file is damaged.
        ray.train.v2.api.exceptions.TrainingFailedError: workers failed more than ``max_failures`` times.
    """
    output = storage.absolute(output)
    settle = config.precision == "auto"
    if settle and not overwrite:
        config = dataclasses.replace(config, precision=runs.identity_of(output).get("precision", "auto"))
    job = prepare(config, resources, max_rejects)
    with runs.hold(output, _identity(job), overwrite=overwrite) as run:
        if not run.finished:
            print("\n".join(job.about))
            hardware = cluster.connect(resources.needs)
            cluster.check_output(output, shared_filesystem=shared_filesystem)
            if settle:
                job = _settle_precision(job, run)
            with run.attempt(hardware, dataclasses.asdict(resources)):
                read_cpus = cluster.read_cpus(resources.read_cpus, resources.needs)
                resources = dataclasses.replace(resources, read_cpus=read_cpus)
                snapshots.mend(storage.join(output, "checkpoints"))
                result = _fit(_trainer(dataclasses.replace(job, resources=resources), output))
                run.check()
                run.counts.update(_publish(result.checkpoint, output))
            run.finish()
    return storage.join(output, "model")


LATER = ("train_against", "pixel_weight", "label_weight")
"""Fields that runs of earlier versions do not name in their identity; they go on where these have their defaults."""


def _identity(job: Job) -> dict[str, Any]:
    """What the trained model follows from."""
    config = job.config
    identity = {**dataclasses.asdict(config), "dataset": job.source.fingerprint, "order": ORDER}
    identity["attacks"] = list(config.attacks)
    for field in dataclasses.fields(config):
        if field.name in LATER and identity[field.name] == field.default:
            del identity[field.name]
    for name, model in (("classifier", job.victim), ("initial", job.initial)):
        if model is not None:
            identity[f"{name}_sha256"] = model.identity
    return identity


def _settle_precision(job: Job, run: runs.Run) -> Job:
    """Let "auto" be what a worker's machine computes fast, in the job and in the run's identity.

    A run that was begun has its precision already: elsewhere it is kept, and said.
    """
    gpus = 1 if job.resources.use_gpu else 0
    probe = ray.remote(num_cpus=job.resources.cpus_per_worker, num_gpus=gpus)(fast_precision)
    fast = ray.get(probe.remote("cuda" if gpus else "cpu"))
    begun = job.config.precision
    if begun == "auto":
        print(f"precision: {fast}, which the workers' hardware is fast in", flush=True)
        run.identity = {**run.identity, "precision": fast}
        return dataclasses.replace(job, config=dataclasses.replace(job.config, precision=fast))
    if begun != fast:
        print(f"precision: {begun}, in which this run was begun; this hardware would be faster in {fast}", flush=True)
    return job


PLAIN_ERRORS = (DivergedError, DataError)
"""What a worker raises with a message that tells all: no traceback is printed."""
FINAL_ERRORS = (*PLAIN_ERRORS, ValueError)
"""What a worker would raise again if it was tried again."""


DEATH = 10
"""Seconds that workers are given to die; they take a fraction of one."""


class StopAtFinalErrors(ray.train.UserCallback):
    """Ends a run whose failure would come again; Ray Train by itself would start its workers ``max_failures`` times."""

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            cause = getattr(error, "_base_exc", error)  # what the worker raised, in Ray Train's wrapping
            if isinstance(cause, FINAL_ERRORS) or getattr(cause, "errno", None) in storage.UNWRITABLE:
                _silence_ray_train()
                raise runs.StoppedError(str(cause))


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
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # Ray types it as its older trainer
        return [callback for callback in callbacks if "PlacementGroupCleaner" not in type(callback).__name__]


def _fit(trainer: _Trainer) -> ray.train.Result:
    """Train to the end. An interrupt ends the workers, so that they write nothing after the lease is released.

    Raises:
        runs.StoppedError: an error that would come again.
    """
    # Ray's watcher of nodes that a cloud takes away tells workers, of which none of ours asks.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    try:
        return trainer.fit()
    except KeyboardInterrupt:
        if trainer.controller is not None:
            with suppress(ray.exceptions.RayError):
                _end(trainer.controller)
        raise
    except ray.train.ControllerError as error:
        failure = error.controller_failure
        if isinstance(failure, runs.StoppedError):
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


def _trainer(job: Job, output: str) -> _Trainer:
    fs, path = storage.filesystem(output)
    resources = job.resources
    scaling = ray.train.ScalingConfig(
        num_workers=resources.workers,
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
    return _Trainer(_work, train_loop_config={"job": job}, scaling_config=scaling, run_config=run_config)


def _publish(checkpoint: ray.train.Checkpoint | None, output: str) -> dict[str, Any]:
    """Copy the last checkpoint's model and curve to where the run's readers look for them."""
    if checkpoint is None:
        raise RuntimeError(f"{output}: the training ended without a checkpoint")
    with checkpoint.as_directory() as folder:
        for name in ("model/model.safetensors", "model/metrics.json", "model/config.json", "metrics.parquet"):
            storage.write_bytes(storage.join(output, name), Path(folder, name).read_bytes())
        metrics = storage.read_json(str(Path(folder, "model/metrics.json")))
        rejects = storage.read_table(str(Path(folder, "rejects.parquet")))
    if len(rejects):
        storage.write_table(storage.join(output, "rejects", "training.parquet"), rejects)
    return {"in": metrics["images"], "out": metrics["images"], "rejected": len(rejects)}


def _count(classes: tuple[str, ...] | int) -> int:
    return classes if isinstance(classes, int) else len(classes)


def _work(loop: dict[str, Any]) -> None:
    """What each worker runs."""
    try:
        _train_part(loop["job"])
    except PLAIN_ERRORS as error:
        _silence_ray_train()
        cause = getattr(error, "cause", None)  # of an error in a task that reads, whose own text is a traceback
        raise (cause if isinstance(cause, PLAIN_ERRORS) else error) from None


def _train_part(job: Job) -> None:
    context = ray.train.get_context()
    worker = Worker(
        job,
        rank=context.get_world_rank(),
        workers=context.get_world_size(),
        device=str(ray.train.torch.get_device()),
    )
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            worker.restore(folder)
    for metrics in worker.epochs():
        if worker.rank == 0:
            with tempfile.TemporaryDirectory() as folder:
                worker.save(folder)
                ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        else:
            ray.train.report(metrics)


class Worker:
    """One data-parallel worker: its model, its part of the stream, its part of the validation."""

    def __init__(self, job: Job, rank: int, workers: int, device: str) -> None:
        cluster.quiet()
        self.job, self.rank, self.workers = job, rank, workers
        self.config, self.device = job.config, device
        if self.device == "cpu":
            compute_on_cpus(job.resources.cpus_per_worker)
        self.order = job.order(rank, workers)
        self.epoch = 0
        self.curve: list[pa.Table] = []
        self.validations: list[dict[str, float]] = []
        self.rejects: dict[str, dict[str, str]] = {}
        torch.manual_seed(seed_of(self.config.seed, "weights"))
        self.network = plugins.build(models.PACKAGES[job.kind], job.network).train()
        if job.initial is not None and job.initial.state is not None:
            self.network.load_state_dict(dict(job.initial.state))
        self.masks = {lane: torch.Generator(self.device) for lane in self.order.lanes}
        self.network = self._prepared(self.network)
        self.objective = self._objective()

    def _prepared(self, network: nn.Module) -> nn.Module:
        """A network on the device, alike on all workers, its batch norms and dropouts over the global batch."""
        placed = with_global_batch(models.placed(network, self.device), list(self.masks.values()))
        return share_weights(placed)

    def _objective(self) -> Objective:
        job, victim = self.job, self.job.victim
        make = models.beside(job.kind, job.network, "objective")
        setup = Setup(
            config=self.config,
            network=self.network,
            classifier=None if victim is None else models.placed(victim.build(), self.device),
            attacks=() if victim is None else build_attacks(self.config.attacks),
            pairs=None if victim is None else build_pairs(self.config.train_against),
            total_steps=self.config.epochs * self.order.steps,
            device=self.device,
            prepared=self._prepared,
            average=average,
        )
        objective: Objective = (make or (ClassifierObjective if victim is None else PurifierObjective))(setup)
        return objective

    def epochs(self) -> Iterator[dict[str, float]]:
        """Train the epochs that are left; after each, its metrics."""
        left = range(self.epoch, self.config.epochs)
        if not left:
            return
        stream = training_stream(self.order, left, self.job.resources.read_cpus)
        size = self.config.batch // self.workers
        batches = iter(stream.iterator().iter_batches(batch_size=size, batch_format="numpy", prefetch_batches=2))
        for epoch in left:
            torch.manual_seed(seed_of(self.config.seed, "noise", epoch, self.rank))
            for lane, generator in self.masks.items():
                generator.manual_seed(seed_of(self.config.seed, "dropout", epoch, lane))
            curve = self._train_epoch(epoch, batches)
            self.curve.append(curve)
            self.validations.append(self._validate())
            self._share_rejects()
            self.epoch = epoch + 1
            yield self._say(curve)

    def _train_epoch(self, epoch: int, batches: Iterator[dict[str, np.ndarray]]) -> pa.Table:
        losses: dict[str, list[Tensor]] = {}
        rates, seconds = [], []
        before = time.perf_counter()
        for step in range(epoch * self.order.steps, (epoch + 1) * self.order.steps):
            of_step, rate = self.step(step, next(batches))
            for name, loss in of_step.items():
                losses.setdefault(name, []).append(loss.float())
            rates.append(rate)
            now = time.perf_counter()
            seconds.append(now - before)
            before = now
        together = torch.stack([torch.stack(values) for values in losses.values()])
        means = dict(zip(losses, self._mean(together).cpu().double().numpy(), strict=True))
        first = epoch * self.order.steps
        for network in (self.network, *self.objective.networks.values()):
            check_finite(means["loss"], rates, network, epoch=epoch + 1, first_step=first)
        others = {f"loss_{name}": values for name, values in means.items() if name != "loss"}
        return pa.table(
            {
                "step": np.arange(first, first + len(rates)),
                "epoch": np.full(len(rates), epoch),
                "loss": means["loss"],
                "rate": rates,
                "images_per_second": self.config.batch / np.array(seconds),
                **others,
            },
            schema=pa.schema([*schema.METRICS, *(pa.field(name, pa.float64(), nullable=False) for name in others)]),
        )

    def step(self, step: int, rows: dict[str, np.ndarray]) -> tuple[dict[str, Tensor], float]:
        """Train on a batch of the stream: see :func:`raypurify.training.objectives.train_step`."""
        self._reject(json.loads(text) for text in rows["reject"] if text)
        batch = batch_of(rows["image"], rows["label"], rows["seed"].tolist(), self.device, rows["id"].tolist())
        drop_pages(rows["image"])
        return train_step(self.objective, batch, step)

    def _validate(self) -> dict[str, float]:
        """Scores of the held-out images, shared out among the workers."""
        sums = validate(self.objective, self._held_out())
        names = sorted(sums) if self.job.held_out.rows else []
        if self.workers > 1:
            names = _all_names(names)
        total = self._mean(torch.tensor([sums.get(name, 0.0) for name in names], dtype=torch.float64)) * self.workers
        values = dict(zip(names, total.tolist(), strict=True))
        return {name: value / values["n"] for name, value in values.items() if name != "n"}

    def _held_out(self) -> Iterator[Batch]:
        for rows in held_out_rows(self.job.held_out, self.job.image_shape, self.rank, self.workers):
            self._reject(rows.rejects)
            if rows.ids:
                seeds = [seed_of(self.config.seed, "validation", name) for name in rows.ids]
                yield batch_of(np.asarray(rows.images), rows.labels, seeds, self.device, rows.ids)

    def _reject(self, rejects: Iterable[dict[str, str]]) -> None:
        """Note images that cannot be decoded.

        Raises:
            DataError: more than ``max_rejects`` of the images.
        """
        self.rejects.update((reject["id"], reject) for reject in rejects)
        images = self.job.training.rows + self.job.held_out.rows
        if len(self.rejects) > self.job.max_rejects * images:
            some = "; ".join(f"{reject['id']}: {reject['reason']}" for reject in [*self.rejects.values()][:3])
            raise DataError(
                f"{len(self.rejects):,} of {images:,} images cannot be decoded, more than --max-rejects="
                f"{self.job.max_rejects} allows: {published(some)}. Mend them, or give a higher --max-rejects to go on"
            )

    def _share_rejects(self) -> None:
        """Let each worker know the rejects of all."""
        if self.workers > 1:
            parts: list[dict[str, dict[str, str]]] = [{} for _ in range(self.workers)]
            torch.distributed.all_gather_object(parts, self.rejects)
            self._reject(reject for part in parts for reject in part.values())

    def _mean(self, value: Tensor) -> Tensor:
        if self.workers > 1:
            value = value.to(self.device)
            torch.distributed.all_reduce(value)
        return value / self.workers

    def _say(self, curve: pa.Table) -> dict[str, float]:
        loss = float(np.mean(curve["loss"].to_numpy()))
        speed = float(np.median(curve["images_per_second"].to_numpy()))
        metrics = {"epoch": float(self.epoch), "loss": loss, "images_per_second": speed, **self.validations[-1]}
        if self.rank == 0:
            scores = "".join(f", {name} {value:.4f}" for name, value in self.validations[-1].items())
            line = f"epoch {self.epoch}/{self.config.epochs}: loss {loss:.5f}, {speed:.0f} images/s{scores}"
            # Ray Train tees what goes to sys.stdout into its log, which ends on the same terminal: every line twice.
            print(line, file=sys.__stdout__, flush=True)
        return metrics

    def save(self, folder: str) -> None:
        """Write a checkpoint: the model as its readers want it, the objective's state, the curve."""
        metrics = {
            "epoch": self.epoch,
            "images": self.epoch * self.order.steps * self.config.batch,
            "validation": self.validations,
        }
        checkpoints.save(
            storage.join(folder, "model"), self.job.checkpoint_config(), self.network.state_dict(), metrics
        )
        optimizer = {name: value.contiguous().cpu() for name, value in self.objective.state().items()}
        safetensors.torch.save_file(optimizer, str(Path(folder, "optimizer.safetensors")))
        storage.write_table(storage.join(folder, "metrics.parquet"), pa.concat_tables(self.curve))
        rejects = pa.Table.from_pylist(published([*self.rejects.values()]), schema.REJECTS)
        storage.write_table(storage.join(folder, "rejects.parquet"), rejects.sort_by("id"))

    def restore(self, folder: str) -> None:
        """Go on from what :meth:`save` wrote."""
        _, state, _ = checkpoints.load(storage.join(folder, "model"))
        self.network.load_state_dict(state)
        self.objective.load_state(safetensors.torch.load_file(str(Path(folder, "optimizer.safetensors"))))
        metrics = storage.read_json(storage.join(folder, "model/metrics.json"))
        self.epoch, self.validations = metrics["epoch"], metrics["validation"]
        self.curve = [storage.read_table(storage.join(folder, "metrics.parquet"))]
        self._reject(storage.read_table(storage.join(folder, "rejects.parquet")).to_pylist())


def _all_names(names: list[str]) -> list[str]:
    """The union of the workers' score names: a worker without held-out images has none."""
    gathered: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, names)
    return sorted({name for part in gathered for name in part})
