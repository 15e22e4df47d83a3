"""Training of a classifier or a purifier: what can be wrong is found before an engine trains."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from raypurify import models, runs, storage
from raypurify.data import (
    DataError,
    Shape,
    Source,
    View,
    check_ids,
    labels_of,
    names_of,
    narrowed,
    open_source,
    shape_of,
    shown,
)
from raypurify.evaluation import normalisation, preflight
from raypurify.jobs.attempt import FINISHED, JobArguments, hold, ready
from raypurify.jobs.engine import Engine, engine_of
from raypurify.jobs.monitor import Monitor
from raypurify.jobs.resources import TrainingResources
from raypurify.report import formats, write_report
from raypurify.runs import log, schema
from raypurify.runs.progress import print_table
from raypurify.storage.published import redacted
from raypurify.training import saved
from raypurify.training.answers import last_linear
from raypurify.training.config import DIGIT_ATTACKS, PHOTOGRAPH_ATTACKS, TrainingConfig
from raypurify.training.loggers import Logger, build_logger
from raypurify.training.objectives import build_attacks, build_pairs
from raypurify.training.order import ORDER, epoch_batches, hold_out, limited
from raypurify.training.pairs import Pairs
from raypurify.training.worker import Job, Worker

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "digits": {"attacks": DIGIT_ATTACKS},
    "photographs": {"attacks": PHOTOGRAPH_ATTACKS, "augmentation": "flip_crop"},
}
"""Defaults of flags, by what the images are. The radius that a purifier withstands is a choice: no shape tells it."""


FALLEN = 0.5
"""A training whose last score is less than this share of its best one is told of."""


@dataclass(frozen=True, kw_only=True)
class TrainingArguments(JobArguments):
    """Flags of the training jobs."""

    training: TrainingConfig
    resources: TrainingResources = field(default_factory=TrainingResources)
    logger: str | None = None
    """Logs each epoch as it is trained: tensorboard[,folder=PATH], mlflow[,uri=URI], or
    my_package.module:callable[,KEY=VALUE...]. It runs in the process that is started, not on the workers."""
    dry_run: bool = False
    """Take two steps, estimate the time, and write nothing."""


USUAL: Mapping[models.Kind, str] = {"classifier": "a_net", "purifier": "cru_net"}
"""A network of each kind that an error names."""


def prepare(config: TrainingConfig, resources: TrainingResources, max_rejects: float = 1.0) -> Job:
    """Resolve names, read headers, labels and weights: everything that can be wrong, before any work.

    Raises:
        ValueError, FileNotFoundError: unknown names, unreadable data or weights.
    """
    victims = tuple(models.load("classifier", text) for text in config.classifiers)
    kind: models.Kind = "purifier" if victims else "classifier"
    pairs = _check_names(kind, config)
    source = _opened(config, victims, pairs)
    config = dataclasses.replace(config, view=source.view)
    initial = None if config.initial is None else models.load(kind, config.initial)
    given = [model for model in (*victims, initial) if model is not None]
    # A purifier to start from knows no classes: those of its own data do not bind this training's.
    source = preflight.matched(source, [model for model in given if model.kind == "classifier"])
    preflight.check_one_shape(source, given)
    training, held_out, classes, about = _shared_out(source, config, pairs)
    shape = shape_of(training)
    about = (*about, *preflight.warned(_check_classifiers(victims, config, training, shape)))
    network = models.shaped_for(kind, config.model, shape, source.number_of_classes)
    if initial is not None and initial.spec != network:
        raise ValueError(f"initial: {config.initial} holds {initial.spec}, and this training is of {network}")
    objective = models.beside(kind, network, "objective")
    _check_trainable(config, kind, models.untrained(kind, network), objective, shape, source.number_of_classes)
    job = Job(
        config=config,
        source=source,
        training=training,
        held_out=held_out,
        classes=classes,
        # A source that tells a view has made its images of crops that stay where they were.
        crops_at_random=config.view.crop is not None and not hasattr(pairs, "view"),
        max_rejects=max_rejects,
        about=about,
        image_shape=shape,
        network=network,
        initial=initial,
        victims=victims,
    )
    for workers in resources.numbers:
        job.order(0, workers)
    return job


def _check_trainable(
    config: TrainingConfig, kind: models.Kind, built: nn.Module, objective: Any, shape: Shape, classes: int
) -> None:
    """Hold the network, and the objective that its file brings, if any, against the data.

    Args:
        shape: (H, W, C) of the images.
        classes: how many the data have.

    Raises:
        ValueError: a network that cannot be trained, or not so.
    """
    if kind == "purifier" and not hasattr(built, "training_loss") and not objective:
        raise ValueError(
            f"{config.model}: this purifier has nothing to train; give one with a training_loss, or with an objective "
            "in its file"
        )
    if getattr(objective, "calibrates", False) and (not config.validation or config.ema):
        raise ValueError(
            f"{config.model}: something of it is set on held-out images, for the weights of the last step; give "
            f"--validation above 0 and --ema 0; got {config.validation!r} and {config.ema!r}"
        )
    out = preflight.tried(built, kind, config.model, shape)
    if kind == "classifier" and out.shape[1] != classes:
        raise ValueError(f"{config.model}: it knows {out.shape[1]} classes, the data have {classes}")


def _opened(config: TrainingConfig, victims: Sequence[models.Model], pairs: Pairs) -> Source:
    """The images of a training, as they are shown.

    Raises:
        DataError: no such data.
        ValueError: data without labels, or the attacked images in the place of those that they were made from; a view
            that is not that of the images that were attacked.
    """
    if hasattr(pairs, "holds") and pairs.holds(config.data):
        raise ValueError(f"data: {config.data} has the attacked images; give the data that they were made from")
    source = open_source(config.data, split="train", view=config.view)
    if not source.classes:
        raise ValueError(f"{config.data}: a training needs labels, and these images have none")
    if not hasattr(pairs, "view"):
        return preflight.as_trained(source, config.view, victims)
    known: View = pairs.view()
    if config.view.given and config.view.given != known.given:
        raise ValueError(
            f"{config.view.flags}: the images of train_against were attacked {known.flags and 'with '}"
            f"{known.flags or 'as they are stored'}; leave it out"
        )
    return preflight.as_trained(source if config.view.given else shown(source, known), View(as_stored=True), victims)


def _check_classifiers(
    victims: Sequence[models.Model], config: TrainingConfig, training: Source, shape: tuple[int, int, int]
) -> list[str]:
    """Hold the classifiers that a purifier is trained for against the data and the losses.

    Returns:
        Warnings.

    Raises:
        ValueError: one that does not fit.
    """
    labels = labels_of(training) if victims else np.empty(0, np.int64)
    warnings = []
    for victim in victims:
        warnings += preflight.check_network(victim, training, labels, shape)
        if config.feature_weight:
            last_linear(victim.build())
    return [*warnings, *normalisation.warnings(victims, training)]


def _check_names(kind: models.Kind, config: TrainingConfig) -> Pairs:
    """Look up attacks and pairs, and refuse the name of a classifier for a purifier, or the other way round.

    Returns:
        The source of pairs.

    Raises:
        ValueError: a name is unknown, or of the other kind.
    """
    build_attacks(config.attacks)
    pairs = build_pairs(config.train_against)
    name = config.model.partition(",")[0]
    other: models.Kind = "purifier" if kind == "classifier" else "classifier"
    known = {of: models.known(of) for of in models.PACKAGES}
    if name in known[other] and name not in known[kind]:
        raise ValueError(
            f"model: {name} is a {other}, and with classifier = {config.classifier} a {kind} is trained; give another "
            f"--model, such as {USUAL[kind]}"
        )
    return pairs


def _shared_out(
    source: Source, config: TrainingConfig, pairs: Pairs
) -> tuple[Source, Source, pa.Table, tuple[str, ...]]:
    """The rows that are trained on, those that are held out, how many of each class, and what is to be said of them.

    Raises:
        DataError: labels that no network can learn, or ids that are not unique.
    """
    check_ids(source)
    source, told = _with_partners(source, config, pairs)
    labels = labels_of(source)
    preflight.check_trainable(source, labels)
    if config.limit is not None:
        source, labels = limited(source, labels, config.limit)
    training, held_out = hold_out(source, labels, config.validation, config.seed)
    parts = labels_of(training), labels_of(held_out) if held_out.rows else np.empty(0, np.int64)
    missing = preflight.missing_classes(source, parts[0], "training")
    if held_out.rows:
        missing += preflight.missing_classes(source, parts[1], "held-out")
    about = f"{preflight.described(source, labels)}; {held_out.rows:,} held out"
    return training, held_out, _counted(source, *parts), preflight.told(about, [*told, *missing])


def _with_partners(source: Source, config: TrainingConfig, pairs: Pairs) -> tuple[Source, list[str]]:
    """The rows that the source of pairs can make a partner of, and a line where these are not all.

    Raises:
        DataError: there are none.
    """
    has = getattr(pairs, "has", None)
    if has is None:
        return source, []
    rows = np.flatnonzero(has(names_of(source)))
    if len(rows) == source.rows:
        return source, []
    if not len(rows):
        raise DataError(
            f"train_against: {config.train_against} has none of the images of {config.data}; attack the data of this "
            "training, of the same split: raypurify attack --split train --input DATA"
        )
    return narrowed(source, rows), [f"trained on {len(rows):,} of {source.rows:,} images: those that were attacked"]


def _counted(source: Source, trained: NDArray[np.int64], held_out: NDArray[np.int64]) -> pa.Table:
    """How many images of each class there are."""
    many = source.number_of_classes
    names = [None] * many if isinstance(source.classes, int) else list(source.classes)
    counts = (np.bincount(labels, minlength=many) for labels in (trained, held_out))
    return pa.table([np.arange(many), names, *counts], schema=schema.CLASSES)


def main(arguments: TrainingArguments) -> None:
    """Train a purifier against attacks on a classifier, or a classifier itself, on Ray Train or with --local."""
    if arguments.dry_run:
        found = dry_run(arguments.training, arguments.resources, arguments.max_rejects)
        print_table(pa.Table.from_pylist([found]))
        return
    log.tell(f"model: {run(arguments)}")


def run(arguments: TrainingArguments) -> str:
    """:func:`train`, by its flags."""
    return train(
        arguments.training,
        arguments.resources,
        logger=arguments.logger,
        **arguments.usual,
    )


def network(config: TrainingConfig, url: str) -> nn.Module:
    """What a training has written to ``url``, as its configuration allows it to be built."""
    own = config.model.partition(",")[0]
    return models.load_network(f"{url},plugin={own}" if ":" in own else url)


def dry_run(config: TrainingConfig, resources: TrainingResources, max_rejects: float = 1.0) -> dict[str, Any]:
    """Take two steps in this process, as one of the workers would, and estimate the time; nothing is written.

    Raises:
        ValueError, FileNotFoundError: bad input, or a cluster that is joined, and is too small.
    """
    job = prepare(config, resources, max_rejects)
    log.tell(*job.about)
    engine_of(resources).check_room(resources.needs)
    resources.set_threads()
    device = resources.device if torch.cuda.is_available() else "cpu"
    worker = Worker(job, 0, resources.workers, device)
    for step, rows in enumerate(islice(epoch_batches(worker.order, 0), 2)):
        began = time.perf_counter()
        loss = worker.step(step, rows)[0]["loss"].item()
        seconds = time.perf_counter() - began  # of the last step: the first one warms up
    steps = config.epochs * worker.order.steps
    return {
        "images": job.training.rows,
        "shape": "x".join(map(str, job.image_shape)),
        "classes": job.source.number_of_classes,
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
    logger: str | None = None,
    overwrite: bool = False,
    shared_filesystem: bool = False,
) -> str:
    """Train a model and write the run's folder; goes on where an earlier attempt stopped, or ended with fewer epochs.

    Args:
        config: what is trained.
        resources: who does it.
        output: URL of the run's folder.
        max_rejects: share of the images, in [0, 1]; when more cannot be decoded the training stops.
        logger: see :func:`raypurify.training.loggers.build_logger`.
        overwrite, shared_filesystem: see :class:`raypurify.runs.Destination`.

    Returns:
        URL of the model that the last epoch left, ``OUTPUT/model``; that of the best is ``OUTPUT/best``.

    Raises:
        ValueError: bad input, or an output that belongs to another run, or that one writes to.
        runs.StoppedError: the training cannot go on: it diverged, too many images are rejected, or a file is damaged.
        ray.train.v2.api.exceptions.TrainingFailedError: workers failed more than ``max_failures`` times.
    """
    output = storage.absolute(output)
    begun = {} if overwrite else runs.identity_of(output)
    settle = config.precision == "auto"
    config = dataclasses.replace(config, precision=begun.get("precision", "auto")) if settle else config
    logs = None if logger is None else build_logger(logger)
    job = dataclasses.replace(prepare(config, resources, max_rejects), cycles=tuple(begun.get("cycles", ())))
    identity = {**_identity(job), "epochs": min(config.epochs, begun.get("epochs", config.epochs))}
    with hold([resources], output, identity, overwrite=overwrite, shared_filesystem=shared_filesystem) as run:
        job = _with_more_epochs(job, run)
        if not run.finished:
            log.tell(*job.about)
            engine, hardware = ready([resources], output, shared_filesystem=shared_filesystem)
            if settle:
                (fast,) = engine.map(resources.needs, models.fast_precision, (), [resources.device])
                job = _settle_precision(job, run, fast)
            with run.attempt(hardware, dataclasses.asdict(resources)):
                _fit(job, resources, run, engine, logs)
            write_report(output)
            run.finish()
    return storage.join(output, "model")


def _fit(job: Job, resources: TrainingResources, run: runs.Run, engine: Engine, logger: Logger | None) -> None:
    """Train what is left on an engine, in sight of a person and a logger, and publish it."""
    storage.write_table(storage.join(run.output, "classes.parquet"), job.classes)
    if logger is not None:
        logger.start(run.output, redacted(run.identity))
    images = job.order(0, 1).steps * job.config.batch
    with Monitor(epochs=job.config.epochs, images=images, logger=logger) as monitor:
        engine.fit(job, resources, run, monitor)
    run.check()
    metrics = _publish(run)
    epochs = run.counts["epochs"]
    if epochs["last"] < job.config.epochs:
        patience = job.config.patience
        log.tell(f"stopped after epoch {epochs['last']}: no better score for {patience} epochs, by --patience")
    if epochs["best"] is not None:
        log.tell(f"the best epoch is {epochs['best']}: {storage.join(run.output, 'best')}", *_fallen(metrics))


def _with_more_epochs(job: Job, run: runs.Run) -> Job:
    """Let a run that has fewer epochs than the job go on to all, in one more cycle of the learning rate.

    Of one that is whole it says so.

    Raises:
        ValueError: it is not done, or ended by its patience.
    """
    folder, done = storage.join(run.output, "checkpoints"), run.identity["epochs"]
    if done == job.config.epochs:
        if run.finished:
            log.tell(f"{FINISHED}; with more --epochs it goes on")
        return job
    last = saved.latest(folder)
    trained = 0 if last is None else saved.progress(storage.join(folder, last))[0]
    if trained < done:
        advice = (
            f"it is finished, and cannot go on. Train another from --initial {storage.join(run.output, 'model')}"
            if run.finished
            else f"its learning rate falls until then. Let it end with --epochs {done} before it is to have more"
        )
        reached = f"{run.output} has a checkpoint of epoch {trained} of {done}"
        raise ValueError(f"{reached}: {advice}, or give another --output")
    job = dataclasses.replace(job, cycles=(*job.cycles, done))
    storage.remove(storage.join(run.output, storage.SUCCESS))
    run.identity, run.finished = _identity(job), False
    return job


LATER = (
    *("train_against", "pixel_weight", "label_weight", "patience"),
    *("more_classifiers", "kl_weight", "feature_weight", "logit_weight", "ema"),
    *("stability_weight", "consistency_weight"),
)
"""Fields that runs of earlier versions do not name in their identity; they go on where these have their defaults."""


def _identity(job: Job) -> dict[str, Any]:
    """What the trained model follows from."""
    config = job.config
    identity = {**dataclasses.asdict(config), **job.earlier, "dataset": job.source.fingerprint, "order": ORDER}
    identity["attacks"] = list(config.attacks)
    del identity["view"]
    identity |= config.view.given
    for known in dataclasses.fields(config):
        if known.name in LATER and identity[known.name] == known.default:
            del identity[known.name]
    if job.initial is not None:
        identity["initial_sha256"] = job.initial.identity
    if job.victims:
        identity["classifier_sha256"] = job.victims[0].identity
    if job.victims[1:]:
        identity["more_classifiers"] = list(config.more_classifiers)
        identity["more_classifiers_sha256"] = [model.identity for model in job.victims[1:]]
    return identity


def _settle_precision(job: Job, run: runs.Run, fast: models.Precision) -> Job:
    """Let "auto" be what the hardware is ``fast`` in, in the job and in the run's identity.

    A run that was begun has its precision already: elsewhere it is kept, and said.
    """
    begun = job.config.precision
    if begun == "auto":
        log.tell(f"precision: {fast}, which the workers' hardware is fast in")
        run.identity = {**run.identity, "precision": fast}
        return dataclasses.replace(job, config=dataclasses.replace(job.config, precision=fast))
    if begun != fast:
        log.tell(f"precision: {begun}, in which this run was begun; this hardware would be faster in {fast}")
    return job


def _fallen(metrics: Mapping[str, Any]) -> list[str]:
    """A warning where the last network's score is far below the best one's. All losses may be finite then."""
    criterion, scores = metrics["criterion"], metrics["validation"]
    best, last = (scores[number].get(criterion) for number in (metrics["best"] - 1, -1))
    if last is None or best <= 0 or last >= FALLEN * best:
        return []
    return [
        f"warning: {criterion} ended at {last:.4f}, from {best:.4f} in the best epoch: the training lost what it had "
        "learned. A lower --rate may help; the network of the best epoch is in best/"
    ]


def _publish(run: runs.Run) -> dict[str, Any]:
    """Copy the last checkpoint's models and curve to where the run's readers look for them, and count what was done.

    Returns:
        ``metrics.json`` of the last network.

    Raises:
        RuntimeError: there is no checkpoint.
    """
    output = run.output
    folder = storage.join(output, "checkpoints")
    name = saved.latest(folder)
    if name is None:
        raise RuntimeError(f"{output}: the training ended without a checkpoint")
    checkpoint = storage.join(folder, name)
    parts = {"metrics.parquet": "metrics.parquet"}
    for model, source in (("model", "model"), ("best", saved.best(checkpoint))):
        if source is not None:
            files = ("model.safetensors", "metrics.json", "config.json")
            parts |= {f"{model}/{file}": f"{source}/{file}" for file in files}
    for part, source in parts.items():
        storage.write_bytes(storage.join(output, part), storage.read_bytes(storage.join(checkpoint, source)))
    metrics: dict[str, Any] = storage.read_json(storage.join(checkpoint, "model/metrics.json"))
    rejects = storage.read_table(storage.join(checkpoint, "rejects.parquet"))
    if len(rejects):
        storage.write_table(storage.join(output, "rejects", "training.parquet"), rejects)
    epochs = {"last": metrics["epoch"], "best": metrics.get("best")}
    images = metrics["images"]
    run.counts.update({"in": images, "out": images, "rejected": len(rejects), "epochs": epochs})
    return metrics
