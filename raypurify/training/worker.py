"""One data-parallel worker of a training, or the only one: its network, its epochs, its checkpoints.

It reads the batches that it is given, and talks to other workers by :mod:`torch.distributed`.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
import torch.distributed
from torch import Tensor, nn

from raypurify import models, plugins, storage
from raypurify.data import DataError, Source
from raypurify.runs import schema
from raypurify.seeds import seed_of
from raypurify.storage import checkpoints
from raypurify.storage.published import published, redacted
from raypurify.training.arithmetic import drop_pages
from raypurify.training.batches import Batch, batch_of
from raypurify.training.config import TrainingConfig
from raypurify.training.global_batch import Run, average, share_weights, with_global_batch
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
from raypurify.training.order import EpochOrder, held_out_rows

Stream = Callable[[EpochOrder, Sequence[int]], Iterator[dict[str, np.ndarray]]]
"""A worker's batches of some epochs in an order, one after the other: see
:func:`raypurify.training.order.epoch_batches`."""

Progressed = Callable[[int, int, float], None]
"""Is told, within an epoch (counted from 1), how many of its images are trained on, and the seconds that took."""

PLAIN_ERRORS = (DivergedError, DataError)
"""What a worker raises with a message that tells all: no traceback is printed."""
FINAL_ERRORS = (*PLAIN_ERRORS, ValueError)
"""What a worker would raise again if it was tried again."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker is told: the configuration, the data, the network, where it starts, and a purifier's victim."""

    config: TrainingConfig
    cycles: tuple[int, ...] = ()
    """After which epochs the training was done, each time before it was to have more."""
    source: Source
    """All the training split, before the limit."""
    training: Source
    held_out: Source
    classes: pa.Table
    """How many images of each there are: of the schema ``CLASSES``."""
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

    @property
    def earlier(self) -> dict[str, list[int]]:
        """The cycles, by their name, where there are any."""
        return {"cycles": list(self.cycles)} if self.cycles else {}

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
            **({"view": self.source.view.given} if self.source.view.given else {}),
            "classes": self.source.number_of_classes,
            "class_names": None if isinstance(self.source.classes, int) else list(self.source.classes),
            "trained_on": dataclasses.asdict(self.source.origin),
            "trained_for": None if victim is None else {"classifier": victim.name, "sha256": victim.sha256},
            "training": redacted({**dataclasses.asdict(self.config), **self.earlier}),
        }


class Worker:
    """One data-parallel worker: its model, its part of the stream, its part of the validation."""

    def __init__(self, job: Job, rank: int, workers: int, device: str) -> None:
        self.job, self.rank, self.workers = job, rank, workers
        self.config, self.device = job.config, device
        self.order = job.order(rank, workers)
        self.epoch = 0
        self.curve: list[pa.Table] = []
        self.validations: list[dict[str, float]] = []
        self.best: int | None = None
        self.best_state: dict[str, Tensor] = {}
        self.rejects: dict[str, dict[str, str]] = {}
        torch.manual_seed(seed_of(self.config.seed, "weights"))
        self.network = models.untrained(job.kind, job.network).train()
        if job.initial is not None and job.initial.state is not None:
            self.network.load_state_dict(dict(job.initial.state))
        self.masks = {lane: self._run(lane) for lane in self.order.lanes}
        self.network = self._prepared(self.network)
        self.objective = self._objective()

    def _run(self, lane: int) -> Run:
        """A lane's images of a global batch, and this worker's of them."""
        part, own = self.order.part, self.order.own
        start, stop = (min(max(edge - lane * part, 0), part) for edge in (own.start, own.stop))
        return Run(generator=torch.Generator(self.device), images=part, own=range(start, stop))

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
            first_step=max(job.cycles, default=0) * self.order.steps,
            device=self.device,
            prepared=self._prepared,
            average=average,
        )
        objective: Objective = (make or (ClassifierObjective if victim is None else PurifierObjective))(setup)
        return objective

    def epochs(self, stream: Stream, progressed: Progressed) -> Iterator[dict[str, float]]:
        """Train the epochs that are left, or until the patience ends; after each, its metrics."""
        left = range(self.epoch, self.config.epochs)
        if not left or self._is_to_stop():
            return
        batches = stream(self.order, left)
        for epoch in left:
            torch.manual_seed(seed_of(self.config.seed, "noise", epoch, self.rank))
            for lane, run in self.masks.items():
                run.generator.manual_seed(seed_of(self.config.seed, "dropout", epoch, lane))
            curve = self._train_epoch(epoch, batches, progressed)
            self.curve.append(curve)
            self.validations.append(self._validate())
            self._share_rejects()
            self.epoch = epoch + 1
            self._keep_best()
            yield self._metrics(curve)
            if self._is_to_stop():
                return

    def _train_epoch(self, epoch: int, batches: Iterator[dict[str, np.ndarray]], progressed: Progressed) -> pa.Table:
        losses: dict[str, list[Tensor]] = {}
        rates, seconds = [], []
        began = before = time.perf_counter()
        for step in range(epoch * self.order.steps, (epoch + 1) * self.order.steps):
            of_step, rate = self.step(step, next(batches))
            for name, loss in of_step.items():
                losses.setdefault(name, []).append(loss.float())
            rates.append(rate)
            now = time.perf_counter()
            seconds.append(now - before)
            before = now
            progressed(epoch + 1, len(rates) * self.config.batch, now - began)
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

    def _keep_best(self) -> None:
        """Keep the network of the epoch that was trained last, where no earlier one has a score as high.

        Raises:
            ValueError: there is patience, and no score to judge by.
        """
        criterion = self.objective.criterion
        scores = [scores[criterion] for scores in self.validations if criterion in scores]
        if not scores and self.config.patience is not None:
            known = ", ".join(self.validations[-1])
            raise ValueError(f"patience: {criterion!r} is the objective's criterion, and its scores are {known}")
        if scores and (self.best is None or scores[-1] > scores[self.best - 1]):
            self.best = self.epoch
            self.best_state = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}

    def _is_to_stop(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.best is not None and self.epoch - self.best >= patience

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

    def _metrics(self, curve: pa.Table) -> dict[str, float]:
        loss = float(np.mean(curve["loss"].to_numpy()))
        speed = float(np.median(curve["images_per_second"].to_numpy()))
        return {"epoch": float(self.epoch), "loss": loss, "images_per_second": speed, **self.validations[-1]}

    def save(self, folder: str) -> None:
        """Write a checkpoint: the curve, the objective's state, and models as their readers want them.

        They are the best epoch's, where that is an earlier one, and at the end that of the last epoch.
        """
        rejects = pa.Table.from_pylist(published([*self.rejects.values()]), schema.REJECTS)
        storage.write_table(storage.join(folder, "rejects.parquet"), rejects.sort_by("id"))
        storage.write_table(storage.join(folder, "metrics.parquet"), pa.concat_tables(self.curve))
        optimizer = {name: value.contiguous().cpu() for name, value in self.objective.state().items()}
        storage.write_bytes(storage.join(folder, "optimizer.safetensors"), safetensors.torch.save(optimizer))
        config = self.job.checkpoint_config()
        if self.best is not None and self.best < self.epoch:
            checkpoints.save(storage.join(folder, "best"), config, self.best_state, self._progress(self.best))
        checkpoints.save(storage.join(folder, "model"), config, self.network.state_dict(), self._progress(self.epoch))

    def _progress(self, epoch: int) -> dict[str, Any]:
        """``metrics.json`` of the model that an epoch left."""
        return {
            "epoch": epoch,
            "images": epoch * self.order.steps * self.config.batch,
            "validation": self.validations[:epoch],
            "best": self.best,
            "criterion": self.objective.criterion,
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
        }

    def restore(self, folder: str) -> None:
        """Go on from what :meth:`save` wrote."""
        _, state, _ = checkpoints.load(storage.join(folder, "model"))
        self.network.load_state_dict(state)
        optimizer = storage.read_bytes(storage.join(folder, "optimizer.safetensors"))
        self.objective.load_state(safetensors.torch.load(optimizer))
        metrics = storage.read_json(storage.join(folder, "model/metrics.json"))
        self.epoch, self.validations = metrics["epoch"], metrics["validation"]
        # A checkpoint of an earlier version holds no other network than that of its own epoch.
        self.best = metrics.get("best", self.epoch if self.objective.criterion in self.validations[-1] else None)
        self.best_state = state
        if self.best not in (None, self.epoch):
            _, self.best_state, _ = checkpoints.load(storage.join(folder, "best"))
        self.curve = [storage.read_table(storage.join(folder, "metrics.parquet"))]
        self._reject(storage.read_table(storage.join(folder, "rejects.parquet")).to_pylist())


def _all_names(names: list[str]) -> list[str]:
    """The union of the workers' score names: a worker without held-out images has none."""
    gathered: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, names)
    return sorted({name for part in gathered for name in part})
