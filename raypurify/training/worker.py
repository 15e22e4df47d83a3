"""One data-parallel worker of a training, or the only one: its network, its epochs, its checkpoints.

It reads the batches that it is given, and talks to other workers by :mod:`torch.distributed`.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

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
from raypurify.storage.retries import RefusedError
from raypurify.training.arithmetic import drop_pages
from raypurify.training.average import Average
from raypurify.training.batches import Batch, batch_of
from raypurify.training.config import TrainingConfig
from raypurify.training.global_batch import Lane, average, share_weights, with_global_batch
from raypurify.training.objectives import (
    ClassifierObjective,
    DivergedError,
    Objective,
    PurifierObjective,
    RobustClassifierObjective,
    Setup,
    build_attacks,
    build_pairs,
    check_finite,
    measure,
    train_step,
    validate,
)
from raypurify.training.order import EpochOrder, held_out_rows

T = TypeVar("T")

Stream = Callable[[EpochOrder, Sequence[int], int], Iterator[dict[str, np.ndarray]]]
"""A worker's batches of some epochs in an order, one after the other, of the first one from a step on: see
:func:`raypurify.training.order.epoch_batches`."""

Progressed = Callable[[int, int, float], None]
"""Is told, within an epoch (counted from 1), how many of its images are trained on, and the seconds that takes at the
pace of this process."""

TRAINED = "trained/"
"""Before the names of the weights that are trained, in a checkpoint whose model is their moving average."""
LOOK = 8
"""Steps between looks at the clock of the first worker, by which all write a checkpoint within an epoch."""

PLAIN_ERRORS = (DivergedError, DataError, RefusedError)
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
    crops_at_random: bool
    """Whether a crop is at another place of an image in each epoch."""
    max_rejects: float
    """Share of the images of the data that may be rejected."""
    about: tuple[str, ...]
    """What is printed of the data before the work."""
    image_shape: tuple[int, int, int]
    network: plugins.Spec
    initial: models.Model | None
    victims: tuple[models.Model, ...]
    """The classifiers that a purifier is trained for; none where a classifier is trained."""

    @property
    def kind(self) -> models.Kind:
        return "purifier" if self.victims else "classifier"

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
            crops_at_random=self.crops_at_random,
        )

    def checkpoint_config(self, *, universal: bool = False) -> dict[str, Any]:
        """``config.json`` of the model, which is any classifier's own where it is ``universal``."""
        victims = [{"classifier": one.name, "sha256": one.sha256} for one in (() if universal else self.victims)]
        trained_for = {**victims[0], **({"more": victims[1:]} if victims[1:] else {})} if victims else None
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
            "trained_for": trained_for,
            "training": redacted({**dataclasses.asdict(self.config), **self.earlier}),
        }


class Worker:
    """One data-parallel worker: its model, its part of the stream, its part of the validation."""

    def __init__(self, job: Job, rank: int, workers: int, device: str) -> None:
        self.job, self.rank, self.workers = job, rank, workers
        self.config, self.device = job.config, device
        self.order = job.order(rank, workers)
        self.epoch, self.steps = 0, 0
        self.random: dict[str, Tensor] = {}
        self.curve: list[pa.Table] = []
        self.validations: list[dict[str, float]] = []
        self.best: int | None = None
        self.best_state: dict[str, Tensor] = {}
        self.rejects: dict[str, dict[str, str]] = {}
        torch.manual_seed(seed_of(self.config.seed, "weights"))
        self.network = models.untrained(job.kind, job.network).train()
        if job.initial is not None and job.initial.state is not None:
            self.network.load_state_dict(dict(job.initial.state))
        self.masks = {lane: self._lane(lane) for lane in self.order.lanes}
        self.network = self._prepared(self.network)
        self.average = Average(self.network, self.config.ema) if self.config.ema else None
        self.objective = self._objective()

    def _lane(self, lane: int) -> Lane:
        """A lane's images of a global batch, and this worker's of them."""
        part, own = self.order.part, self.order.own
        start, stop = (min(max(edge - lane * part, 0), part) for edge in (own.start, own.stop))
        return Lane(generator=torch.Generator(self.device), images=part, own=range(start, stop))

    def _prepared(self, network: nn.Module) -> nn.Module:
        """A network on the device, alike on all workers, its batch norms and dropouts over the global batch."""
        placed = with_global_batch(models.placed(network, self.device), list(self.masks.values()))
        return share_weights(placed)

    def _objective(self) -> Objective:
        job, on_pairs = self.job, self.config.trains_on_pairs
        make = models.beside(job.kind, job.network, "objective")
        classifiers = [models.placed(victim.build(), self.device) for victim in job.victims]
        setup = Setup(
            config=self.config,
            network=self.network,
            classifier=classifiers[0] if classifiers else None,
            more_classifiers=tuple(classifiers[1:]),
            attacks=build_attacks(self.config.attacks) if on_pairs else (),
            pairs=build_pairs(self.config.train_against) if on_pairs else None,
            total_steps=self.config.epochs * self.order.steps,
            first_step=max(job.cycles, default=0) * self.order.steps,
            device=self.device,
            prepared=self._prepared,
            average=average,
        )
        usual = RobustClassifierObjective if on_pairs else ClassifierObjective
        objective: Objective = (make or (PurifierObjective if classifiers else usual))(setup)
        return objective

    def epochs(
        self, stream: Stream, progressed: Progressed, checkpoint_minutes: float
    ) -> Iterator[dict[str, float] | None]:
        """Train the epochs that are left, or until the patience ends.

        Args:
            stream: where batches come from.
            progressed: is called after each step.
            checkpoint_minutes: how long to train within an epoch before there is something to save.

        Yields:
            What is to be saved has come: the metrics of an epoch that is done, and None within one.
        """
        left = range(self.epoch, self.config.epochs)
        if not left or self._is_to_stop():
            return
        batches = stream(self.order, left, self.steps)
        for epoch in left:
            self._set_random(epoch)
            while self.steps < self.order.steps:
                self.curve.append(self._train_part(batches, progressed, 60 * checkpoint_minutes))
                if self.steps < self.order.steps:
                    self._share_rejects()
                    self._keep_random()
                    yield None
            self.validations.append(self._validate())
            self._share_rejects()
            self.epoch, self.steps, self.random = epoch + 1, 0, {}
            self._keep_best()
            yield self._metrics()
            if self._is_to_stop():
                return

    def _generators(self) -> dict[str, torch.Generator]:
        """What the training draws from: the masks of lanes, which workers may share, and what is this worker's own."""
        device = torch.device(self.device)
        own = {"cpu": torch.default_generator}
        if device.type == "cuda":
            own["cuda"] = torch.cuda.default_generators[device.index or torch.cuda.current_device()]
        lanes = {f"{device.type} lane {number}": lane.generator for number, lane in self.masks.items()}
        return lanes | {f"{kind} {self.rank} of {self.workers}": generator for kind, generator in own.items()}

    def _set_random(self, epoch: int) -> None:
        """Draw as an epoch does from its beginning or, where a checkpoint was written within it, from there."""
        torch.manual_seed(seed_of(self.config.seed, "noise", epoch, self.rank))
        for number, lane in self.masks.items():
            lane.generator.manual_seed(seed_of(self.config.seed, "dropout", epoch, number))
        for name, generator in self._generators().items():
            if name in self.random:
                generator.set_state(self.random[name])

    def _keep_random(self) -> None:
        """Keep the states of all workers' generators, for a checkpoint within an epoch."""
        states = {name: generator.get_state() for name, generator in self._generators().items()}
        self.random = {name: state for part in self._gathered(states) for name, state in part.items()}

    def _train_part(self, batches: Iterator[dict[str, np.ndarray]], progressed: Progressed, seconds: float) -> pa.Table:
        """Train to the end of the epoch, or for so many seconds: the curve of these steps."""
        losses: dict[str, list[Tensor]] = {}
        rates: list[float] = []
        times = [time.perf_counter()]
        first = self.epoch * self.order.steps + self.steps
        while self.steps < self.order.steps and not self._is_due(times, seconds):
            of_step, rate = self.step(first + len(rates), next(batches))
            for name, loss in of_step.items():
                losses.setdefault(name, []).append(loss.float())
            rates.append(rate)
            if self.average is not None:
                self.average.update(first + len(rates))
            times.append(time.perf_counter())
            self.steps += 1
            pace = (times[-1] - times[0]) / len(rates)
            progressed(self.epoch + 1, self.steps * self.config.batch, self.steps * pace)
        together = torch.stack([torch.stack(values) for values in losses.values()])
        means = dict(zip(losses, self._mean(together).cpu().double().numpy(), strict=True))
        for network in (self.network, *self.objective.networks.values()):
            check_finite(means["loss"], rates, network, epoch=self.epoch + 1, first_step=first)
        others = {f"loss_{name}": values for name, values in means.items() if name != "loss"}
        return pa.table(
            {
                "step": np.arange(first, first + len(rates)),
                "epoch": np.full(len(rates), self.epoch),
                "loss": means["loss"],
                "rate": rates,
                "images_per_second": self.config.batch / np.diff(times),
                **others,
            },
            schema=pa.schema([*schema.STEPS, *(pa.field(name, pa.float64(), nullable=False) for name in others)]),
        )

    def _is_due(self, times: Sequence[float], seconds: float) -> bool:
        """Whether the first worker trained for so many seconds since its last checkpoint, at a look at the clock."""
        if self.steps % LOOK or len(times) == 1:
            return False
        is_due = torch.tensor(times[-1] - times[0] >= seconds, dtype=torch.uint8, device=self.device)
        if self.workers > 1:
            torch.distributed.broadcast(is_due, 0)
        return bool(is_due)

    def step(self, step: int, rows: dict[str, np.ndarray]) -> tuple[dict[str, Tensor], float]:
        """Train on a batch of the stream: see :func:`raypurify.training.objectives.train_step`."""
        self._reject(json.loads(text) for text in rows["reject"] if text)
        batch = batch_of(rows["image"], rows["label"], rows["seed"].tolist(), self.device, rows["id"].tolist())
        drop_pages(rows["image"])
        return train_step(self.objective, batch, step)

    def _validate(self) -> dict[str, float]:
        """Scores of the held-out images, shared out among the workers."""
        if self.objective.calibrates:
            self._calibrate()
        with nullcontext() if self.average is None else self.average.applied():
            sums = validate(self.objective, self._held_out())
        # A worker without held-out images has no scores.
        names = sorted({name for part in self._gathered([*sums]) for name in part}) if self.job.held_out.rows else []
        total = self._mean(torch.tensor([sums.get(name, 0.0) for name in names], dtype=torch.float64)) * self.workers
        values = dict(zip(names, total.tolist(), strict=True))
        return {name: value / values["n"] for name, value in values.items() if name != "n"}

    def _calibrate(self) -> None:
        """Let the objective set what follows from all held-out images."""
        measured = [part for part in self._gathered(measure(self.objective, self._held_out())) if len(part)]
        if not measured:
            raise DataError("no held-out image can be decoded: there is nothing to set the thresholds by; see rejects")
        self.objective.calibrate(torch.cat(measured).to(self.device))

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
            self.best_state = {name: value.detach().cpu().clone() for name, value in self._published().items()}

    def _published(self) -> Mapping[str, Tensor]:
        """The weights that are scored and published."""
        return self.network.state_dict() if self.average is None else self.average.state

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
            self._reject(reject for part in self._gathered(self.rejects) for reject in part.values())

    def _gathered(self, own: T) -> list[T]:
        """What each of the workers has."""
        parts = [own] * self.workers
        if self.workers > 1:
            torch.distributed.all_gather_object(parts, own)
        return parts

    def _mean(self, value: Tensor) -> Tensor:
        if self.workers > 1:
            value = value.to(self.device)
            torch.distributed.all_reduce(value)
        return value / self.workers

    def _metrics(self) -> dict[str, float]:
        """Of the epoch that was trained last."""
        curve = pa.concat_tables(self.curve)
        curve = curve.slice(len(curve) - self.order.steps)
        loss = float(np.mean(curve["loss"].to_numpy()))
        speed = float(np.median(curve["images_per_second"].to_numpy()))
        return {"epoch": float(self.epoch), "loss": loss, "images_per_second": speed, **self.validations[-1]}

    def save(self, folder: str) -> None:
        """Write a checkpoint: the curve, the objective's state, and models as their readers want them.

        They are the best epoch's, where that is an earlier one, and at the end that of the last step. Within an epoch
        there are also the states of generators.
        """
        rejects = pa.Table.from_pylist(published([*self.rejects.values()]), schema.REJECTS)
        storage.write_table(storage.join(folder, "rejects.parquet"), rejects.sort_by("id"))
        storage.write_table(storage.join(folder, "metrics.parquet"), pa.concat_tables(self.curve))
        trained = {} if self.average is None else self.network.state_dict()
        state = {**self.objective.state(), **{TRAINED + name: value for name, value in trained.items()}}
        optimizer = {name: value.detach().contiguous().cpu() for name, value in state.items()}
        storage.write_bytes(storage.join(folder, "optimizer.safetensors"), safetensors.torch.save(optimizer))
        config = self.job.checkpoint_config(universal=getattr(self.network, "universal", False))
        if self.steps:
            storage.write_bytes(storage.join(folder, "random.safetensors"), safetensors.torch.save(self.random))
        if self.best is not None and (self.best < self.epoch or self.steps):
            checkpoints.save(storage.join(folder, "best"), config, self.best_state, self._progress(self.best))
        checkpoints.save(
            storage.join(folder, "model"), config, self._published(), self._progress(self.epoch, self.steps)
        )

    def _progress(self, epoch: int, steps: int = 0) -> dict[str, Any]:
        """``metrics.json`` of the model that an epoch left, and so many steps of the next."""
        return {
            "epoch": epoch,
            **({"steps": steps, "epoch_steps": self.order.steps} if steps else {}),
            "images": (epoch * self.order.steps + steps) * self.config.batch,
            "validation": self.validations[:epoch],
            "best": self.best,
            "criterion": self.objective.criterion,
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
        }

    def restore(self, folder: str) -> None:
        """Go on from what :meth:`save` wrote."""
        _, state, _ = checkpoints.load(storage.join(folder, "model"))
        tensors = safetensors.torch.load(storage.read_bytes(storage.join(folder, "optimizer.safetensors")))
        trained = {name.removeprefix(TRAINED): value for name, value in tensors.items() if name.startswith(TRAINED)}
        self.network.load_state_dict(trained or state)
        if self.average is not None:
            self.average.restore(state)
        self.objective.load_state(tensors)
        metrics = storage.read_json(storage.join(folder, "model/metrics.json"))
        self.epoch, self.validations = metrics["epoch"], metrics["validation"]
        self.steps = metrics.get("steps", 0)
        if self.steps:
            self.random = safetensors.torch.load(storage.read_bytes(storage.join(folder, "random.safetensors")))
        if "best" in metrics:
            self.best = metrics["best"]
        elif self.objective.criterion in self.validations[-1]:
            self.best = self.epoch  # a checkpoint of an earlier version holds no other network
        self.best_state = state
        if self.best is not None and (self.best < self.epoch or self.steps):
            _, self.best_state, _ = checkpoints.load(storage.join(folder, "best"))
        self.curve = [storage.read_table(storage.join(folder, "metrics.parquet"))]
        self._reject(storage.read_table(storage.join(folder, "rejects.parquet")).to_pylist())
