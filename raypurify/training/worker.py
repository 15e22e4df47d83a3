"""One data-parallel worker of a training, or the only one: its network, its epochs, its checkpoints.

It reads the batches that it is given, and talks to other workers by :mod:`torch.distributed`.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

PLAIN_ERRORS = (DivergedError, DataError)
"""What a worker raises with a message that tells all: no traceback is printed."""
FINAL_ERRORS = (*PLAIN_ERRORS, ValueError)
"""What a worker would raise again if it was tried again."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker is told: the configuration, the data, the network, where it starts, and a purifier's victim."""

    config: TrainingConfig
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
            **({"view": self.source.view.given} if self.source.view.given else {}),
            "classes": self.source.number_of_classes,
            "class_names": None if isinstance(self.source.classes, int) else list(self.source.classes),
            "trained_on": dataclasses.asdict(self.source.origin),
            "trained_for": None if victim is None else {"classifier": victim.name, "sha256": victim.sha256},
            "training": redacted(dataclasses.asdict(self.config)),
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
            device=self.device,
            prepared=self._prepared,
            average=average,
        )
        objective: Objective = (make or (ClassifierObjective if victim is None else PurifierObjective))(setup)
        return objective

    def epochs(self, stream: Stream) -> Iterator[dict[str, float]]:
        """Train the epochs that are left; after each, its metrics."""
        left = range(self.epoch, self.config.epochs)
        if not left:
            return
        batches = stream(self.order, left)
        for epoch in left:
            torch.manual_seed(seed_of(self.config.seed, "noise", epoch, self.rank))
            for lane, run in self.masks.items():
                run.generator.manual_seed(seed_of(self.config.seed, "dropout", epoch, lane))
            curve = self._train_epoch(epoch, batches)
            self.curve.append(curve)
            self.validations.append(self._validate())
            self._share_rejects()
            self.epoch = epoch + 1
            yield self._metrics(curve)

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

    def _metrics(self, curve: pa.Table) -> dict[str, float]:
        loss = float(np.mean(curve["loss"].to_numpy()))
        speed = float(np.median(curve["images_per_second"].to_numpy()))
        return {"epoch": float(self.epoch), "loss": loss, "images_per_second": speed, **self.validations[-1]}

    def told(self, metrics: Mapping[str, float]) -> str:
        """A line on the epoch that was trained last."""
        scores = "".join(f", {name} {value:.4f}" for name, value in self.validations[-1].items())
        speed = f"{metrics['images_per_second']:.0f} images/s"
        return f"epoch {self.epoch}/{self.config.epochs}: loss {metrics['loss']:.5f}, {speed}{scores}"

    def save(self, folder: str) -> None:
        """Write a checkpoint: the curve, the objective's state and, last, the model as its readers want it."""
        rejects = pa.Table.from_pylist(published([*self.rejects.values()]), schema.REJECTS)
        storage.write_table(storage.join(folder, "rejects.parquet"), rejects.sort_by("id"))
        storage.write_table(storage.join(folder, "metrics.parquet"), pa.concat_tables(self.curve))
        optimizer = {name: value.contiguous().cpu() for name, value in self.objective.state().items()}
        storage.write_bytes(storage.join(folder, "optimizer.safetensors"), safetensors.torch.save(optimizer))
        metrics = {
            "epoch": self.epoch,
            "images": self.epoch * self.order.steps * self.config.batch,
            "validation": self.validations,
        }
        checkpoints.save(
            storage.join(folder, "model"), self.job.checkpoint_config(), self.network.state_dict(), metrics
        )

    def restore(self, folder: str) -> None:
        """Go on from what :meth:`save` wrote."""
        _, state, _ = checkpoints.load(storage.join(folder, "model"))
        self.network.load_state_dict(state)
        optimizer = storage.read_bytes(storage.join(folder, "optimizer.safetensors"))
        self.objective.load_state(safetensors.torch.load(optimizer))
        metrics = storage.read_json(storage.join(folder, "model/metrics.json"))
        self.epoch, self.validations = metrics["epoch"], metrics["validation"]
        self.curve = [storage.read_table(storage.join(folder, "metrics.parquet"))]
        self._reject(storage.read_table(storage.join(folder, "rejects.parquet")).to_pylist())


def _all_names(names: list[str]) -> list[str]:
    """The union of the workers' score names: a worker without held-out images has none."""
    gathered: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, names)
    return sorted({name for part in gathered for name in part})
