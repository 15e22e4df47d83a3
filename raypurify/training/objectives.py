"""What a training does with a batch: the loss, the optimisers and the score.

A plugin file of a network may name ``objective``, a callable ``(setup) -> Objective``: a loss of its own, or optimisers
and steps of its own. Without one a classifier is trained by :class:`ClassifierObjective`, or by
:class:`RobustClassifierObjective` where a source of pairs is named, and a purifier by :class:`PurifierObjective`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F

from raypurify import plugins
from raypurify.attacks import Attack, Graphs
from raypurify.models import autocast, full_float32
from raypurify.seeds import seed_of
from raypurify.training.answers import divergence, loss_of_answers
from raypurify.training.batches import Batch, augment
from raypurify.training.config import TrainingConfig, precision_of
from raypurify.training.graphs import Update, UpdateGraphs
from raypurify.training.pairs import Pairs, PairSetup


class DivergedError(RuntimeError):
    """A training whose loss or weights are no longer finite."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What an objective is made of, on one of the data-parallel workers."""

    config: TrainingConfig
    network: nn.Module
    """The network that is trained, on the device."""
    total_steps: int
    """Of the whole training."""
    device: str
    first_step: int = 0
    """Of the cycle of the learning rate: where a finished training ended that is gone on with."""
    classifier: nn.Module | None = None
    """The classifier that a purifier is trained for, in eval and frozen."""
    more_classifiers: tuple[nn.Module, ...] = ()
    """Further ones."""
    attacks: tuple[Attack, ...] = ()
    """The config's attacks."""
    pairs: Pairs | None = None
    """Where a purifier's adversarial images come from."""
    prepared: Callable[[nn.Module], nn.Module] = lambda network: network
    """Puts a network that is trained beside on the device, its batch norms and dropouts over the global batch."""
    average: Callable[[Sequence[Tensor]], None] = lambda gradients: None
    """Exchanges gradients, in place, for their means over all workers."""

    def optimization(
        self, network: nn.Module, *, rate: float | None = None, optimizer: Callable[..., Any] = torch.optim.AdamW
    ) -> Optimization:
        """An optimiser of all of a network's parameters.

        Args:
            network: on the device.
            rate: peak learning rate; the config's if None.
            optimizer: an optimiser's class, or one with some arguments given, as by ``functools.partial``.
        """
        return Optimization(
            parameters=list(network.parameters()),
            config=self.config if rate is None else replace(self.config, rate=rate),
            total_steps=self.total_steps,
            first_step=self.first_step,
            device=self.device,
            average=self.average,
            make=optimizer,
        )


@dataclass(kw_only=True)
class Optimization:
    """AdamW under a one-cycle learning rate that is a function of the step, so that resuming needs no state of it."""

    parameters: list[nn.Parameter]
    config: TrainingConfig
    total_steps: int
    first_step: int = 0
    """Of the cycle, which ends with the last of ``total_steps``."""
    device: str = "cpu"
    average: Callable[[Sequence[Tensor]], None] = lambda gradients: None
    """Exchanges gradients, in place, for their means over all workers."""
    make: Callable[..., Any] = torch.optim.AdamW
    """Makes the optimiser of groups of parameters and ``lr``."""
    optimizer: Any = field(init=False)

    def __post_init__(self) -> None:
        decayed = [parameter for parameter in self.parameters if parameter.ndim > 1]
        others = [parameter for parameter in self.parameters if parameter.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = self.make(groups, lr=self.config.rate)
        self.capturable = self.device.startswith("cuda") and "capturable" in getattr(self.optimizer, "defaults", {})
        if self.capturable:
            for group in self.optimizer.param_groups:
                group |= {"capturable": True, "lr": torch.tensor(self.config.rate, device=self.device)}

    def rate(self, step: int) -> float:
        """Learning rate of ``step``, from 0: up linearly for a tenth of its cycle, then down along a cosine to 0."""
        step, steps = step - self.first_step, self.total_steps - self.first_step
        warm = max(1, steps // 10)
        if step < warm:
            return self.config.rate * (step + 1) / warm
        return self.config.rate * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2

    def minimise(self, loss: Tensor, step: int) -> Tensor:
        """Go one step down along the gradient of a loss; returns it, detached.

        Gradients that another loss left in the parameters do not count.
        """
        self.set_rate(step)
        return self.descend(loss)

    def set_rate(self, step: int) -> None:
        """Let the optimiser have the learning rate of a step."""
        for group in self.optimizer.param_groups:
            if self.capturable:
                group["lr"].fill_(self.rate(step))
            else:
                group["lr"] = self.rate(step)

    def descend(self, loss: Tensor) -> Tensor:
        """:meth:`minimise`, at the rate that was set last.

        The gradients are averaged over the workers, clipped, applied, and cleared.
        """
        self.optimizer.zero_grad(set_to_none=True)
        precision = precision_of(self.config, self.device)
        with torch.autocast(self.device.partition(":")[0], enabled=False), full_float32(enabled=precision == "float32"):
            loss.backward()
            self.average([parameter.grad for parameter in self.parameters if parameter.grad is not None])
            nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def state(self) -> dict[str, Tensor]:
        """The optimizer's tensors by name, for a checkpoint without pickle."""
        tensors = {}
        for index, parameter in enumerate(self._ordered()):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{index}.{name}"] = value
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what :meth:`state` gave."""
        for index, parameter in enumerate(self._ordered()):
            names = {key.partition(".")[2] for key in tensors if key.startswith(f"{index}.")}
            state = {name: tensors[f"{index}.{name}"] for name in names}
            self.optimizer.state[parameter] = {
                name: value.to(parameter.device) if name != "step" or self.capturable else value
                for name, value in state.items()
            }

    def _ordered(self) -> Iterator[nn.Parameter]:
        for group in self.optimizer.param_groups:
            yield from group["params"]


NETWORK = "network"


class Objective:
    """What a training does with each batch. A subclass names :meth:`loss`, or :meth:`step`; and :meth:`score`.

    ``optimizations`` are by name, that of the trained network under ``network``; ``networks`` are those that are
    trained beside it. The states of both are in the checkpoints; the published model is the trained network alone.
    """

    criterion: str | None = None
    """The score, of those of :meth:`score`, whose highest value tells the best epoch; None: no epoch is."""
    calibrates = False
    """Whether something of the network is set on the held-out images after each epoch, by :meth:`measured` and
    :meth:`calibrate`."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.optimizations = {NETWORK: setup.optimization(setup.network)}
        self.networks: dict[str, nn.Module] = {}

    def train_beside(self, name: str, network: nn.Module, **options: Any) -> nn.Module:
        """Have a network trained beside, such as a critic, by an optimiser of its own.

        Args:
            name: of the network and of its optimiser.
            network: its weights drawn from torch's global generator, which is seeded.
            options: of :meth:`Setup.optimization`.

        Returns:
            The network as it is to be called.
        """
        self.networks[name] = self.setup.prepared(network.train())
        self.optimizations[name] = self.setup.optimization(self.networks[name], **options)
        return self.networks[name]

    def loss(self, batch: Batch) -> Tensor:
        """Mean over the batch."""
        raise NotImplementedError

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Learn from a batch, by one update or several.

        Args:
            batch: this worker's part of the global batch.
            step: of the training, from 0.

        Returns:
            Detached scalars: ``loss``, and more under other names, each a column ``loss_NAME`` of ``metrics.parquet``.
        """
        return {"loss": self.optimizations[NETWORK].minimise(self.loss(batch), step)}

    def learn(self, update: Update, step: int, *tensors: Tensor) -> dict[str, Tensor]:
        """Update networks, by a CUDA graph where there can be one.

        Args:
            update: a function of the tensors and of weights alone, which calls :meth:`Optimization.descend`. It is the
                same at each step, changes weights and buffers where they lie, and draws nothing on the CPU.
            step: of the training, from 0.
            tensors: a batch's, on the device.

        Returns:
            The detached scalars that ``update`` returns.
        """
        for optimization in self.optimizations.values():
            optimization.set_rate(step)
            optimization.optimizer.zero_grad(set_to_none=True)  # a graph would add to what another update left
        return update(*tensors) if self.update_graphs is None else self.update_graphs.run(update, tensors)

    @cached_property
    def update_graphs(self) -> UpdateGraphs | None:
        """Of :meth:`learn`; None on CPUs, of several workers or classifiers, and of what differs from step to step."""
        setup = self.setup
        networks = (setup.network, *self.networks.values(), *([setup.classifier] if setup.classifier else []))
        is_alone = not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1
        is_possible = (
            all(optimization.capturable for optimization in self.optimizations.values())
            and is_alone
            and not setup.more_classifiers
            and all(getattr(module, "cuda_graphs", True) for network in networks for module in network.modules())
        )
        return UpdateGraphs(networks) if is_possible else None

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Sums over the batch; networks are in eval."""
        raise NotImplementedError

    def measured(self, batch: Batch) -> Tensor:
        """What is measured of each image of a batch, to calibrate: (N, ...); networks are in eval."""
        raise NotImplementedError

    def calibrate(self, values: Tensor) -> None:
        """Set what is set on the held-out images, by what was measured of all of them: (N, ...), in any order."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """All but the trained network's weights, by names that :meth:`load_state` knows."""
        tensors: dict[str, Tensor] = {}
        for name, optimization in self.optimizations.items():
            prefix = "" if name == NETWORK else f"{name}/"
            tensors |= {prefix + key: value for key, value in optimization.state().items()}
        for name, network in self.networks.items():
            tensors |= {f"networks/{name}/{key}": value for key, value in network.state_dict().items()}
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what :meth:`state` gave."""
        for name, optimization in self.optimizations.items():
            optimization.load_state(_under("" if name == NETWORK else f"{name}/", tensors))
        for name, network in self.networks.items():
            network.load_state_dict(_under(f"networks/{name}/", tensors))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


class TensorObjective(Objective):
    """An objective whose loss follows from tensors that are made of a batch, and from weights.

    A subclass names :meth:`tensors` and :meth:`loss_of`.
    """

    def tensors(self, batch: Batch) -> tuple[Tensor, ...]:
        """What :meth:`loss_of` is called with, on the device."""
        raise NotImplementedError

    def loss_of(self, *tensors: Tensor) -> Tensor:
        """Mean over the batch."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> Tensor:
        """See :meth:`Objective.loss`."""
        return self.loss_of(*self.tensors(batch))

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """See :meth:`Objective.step`."""
        if type(self).loss is not TensorObjective.loss:
            return super().step(batch, step)
        return self.learn(self._descend, step, *self.tensors(batch))

    def _descend(self, *tensors: Tensor) -> dict[str, Tensor]:
        return {"loss": self.optimizations[NETWORK].descend(self.loss_of(*tensors))}


class ClassifierObjective(TensorObjective):
    """Cross-entropy of the logits."""

    criterion = "accuracy"

    def tensors(self, batch: Batch) -> tuple[Tensor, ...]:
        """Images and labels."""
        return augment(batch.x, batch.seeds, self.setup.config.augmentation), batch.y

    def loss_of(self, *tensors: Tensor) -> Tensor:
        x, y = tensors
        return F.cross_entropy(self.setup.network(x).float(), y)

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Images classified right."""
        return {"accuracy": (self.setup.network(batch.x).argmax(dim=1) == batch.y).sum()}


class PairsObjective(TensorObjective):
    """On adversarial pairs, an attacked image and its clean one, as the config's source makes them."""

    progress = 0.0
    """Share of the steps of the training, in its first cycle, that lie behind; 1 in later cycles."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.graphs = Graphs() if setup.device.startswith("cuda") else None

    def begin(self, step: int) -> None:
        """Note how far the training is; a subclass with a :meth:`step` of its own calls it first."""
        self.progress = 1.0 if self.setup.first_step else step / self.setup.total_steps

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """See :meth:`Objective.step`."""
        self.begin(step)
        return super().step(batch, step)

    def pairs(self, batch: Batch, draws: int = 1) -> tuple[Tensor, Tensor]:
        """Attacked images, or clean ones in their share, and the clean images that they were made of: (N, C, H, W).

        With several draws there are (draws * N): all images under the first draw, then under the next.
        """
        config = self.setup.config
        change = partial(augment, seeds=batch.seeds, augmentation=config.augmentation)
        changed = replace(batch, x=change(batch.x))
        made = [
            self.attacked(changed, config.clean_share, draw=draw, augment=change, progress=self.progress)
            for draw in range(draws)
        ]
        return torch.cat(made), torch.cat([changed.x] * draws)

    def attacked(self, batch: Batch, clean_share: float, **more: Any) -> Tensor:
        """The images of a batch as the source of pairs makes them: (N, C, H, W).

        Args:
            batch: the clean images.
            clean_share: share of them, in [0, 1], that are left as they are.
            more: other fields of :class:`raypurify.training.pairs.PairSetup` that differ from batch to batch.
        """
        return self.made(batch, self.setup.classifier, clean_share, **more)

    def made(self, batch: Batch, classifier: nn.Module | None, clean_share: float, **more: Any) -> Tensor:
        """The images of a batch as the source of pairs makes them before one classifier."""
        setup = self.setup
        assert setup.pairs is not None
        making = PairSetup(
            network=setup.network,
            classifier=classifier,
            attacks=setup.attacks,
            clean_share=clean_share,
            graphs=self.graphs,
            **more,
        )
        return setup.pairs(batch, making)


class RobustClassifierObjective(PairsObjective):
    """Cross-entropy of adversarial images: adversarial training (Madry et al. 2017), or training on noise.

    With the config's ``kl_weight``, there is TRADES' loss beside it.
    """

    criterion = "accuracy_adversarial"

    def tensors(self, batch: Batch) -> tuple[Tensor, ...]:
        """Adversarial images, clean ones, and labels."""
        return *self.pairs(batch), batch.y

    def loss_of(self, *tensors: Tensor) -> Tensor:
        config, network = self.setup.config, self.setup.network
        x_adv, x, y = tensors
        logits = network(x_adv)
        loss = F.cross_entropy(logits.float(), y)
        return loss + config.kl_weight * divergence(network(x), logits) if config.kl_weight else loss

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Clean and adversarial images classified right."""
        images = {"accuracy": batch.x, "accuracy_adversarial": self.attacked(batch, clean_share=0)}
        return {name: (self.setup.network(x).argmax(dim=1) == batch.y).sum() for name, x in images.items()}


class PurifierObjective(PairsObjective):
    """A purifier's own ``training_loss`` of pairs, and losses in what the frozen classifier behind it answers, each by
    its weight in the config. Where there are several classifiers, each image is of one, which its seed picks.
    """

    criterion = "accuracy_purified"

    @property
    def _classifiers(self) -> list[nn.Module]:
        """All classifiers that the purifier is trained for."""
        return [cast(nn.Module, self.setup.classifier), *self.setup.more_classifiers]

    def tensors(self, batch: Batch) -> tuple[Tensor, ...]:
        """Adversarial images, clean ones, labels and, where there are several classifiers, :meth:`rows`."""
        draws = 2 if self.setup.config.consistency_weight else 1
        rows = [torch.cat([own + draw * len(batch.y) for draw in range(draws)]) for own in self.rows(batch)]
        return *self.pairs(batch, draws), batch.y.repeat(draws), *rows

    def loss_of(self, *tensors: Tensor) -> Tensor:
        config, network = self.setup.config, cast(Any, self.setup.network)
        x_adv, x, y, *rows = tensors
        if not config.weighs_answers:
            return config.pixel_weight * cast(Tensor, network.training_loss(x_adv, x))
        if config.pixel_weight:
            restored, pixel_loss = restored_and_loss(network, x_adv, x)
        else:
            restored, pixel_loss = network(x_adv), x.new_zeros(())
        clean = network(x) if config.kl_weight else x
        loss = config.pixel_weight * pixel_loss
        parts: Sequence[Tensor | slice] = rows or [slice(None)]
        for classifier, own in zip(self._classifiers, parts, strict=True):
            if len(y[own]):
                of_answers = loss_of_answers(classifier, config, restored[own], x[own], clean[own], y[own])
                loss = loss + len(y[own]) / len(y) * of_answers
        return loss

    def attacked(self, batch: Batch, clean_share: float, **more: Any) -> Tensor:
        """See :meth:`PairsObjective.attacked`; each image before its classifier."""
        parts = self.shared_out(batch)
        if len(parts) == 1:
            return self.made(batch, parts[0][0], clean_share, **more)
        x_adv = torch.empty_like(batch.x)
        change = more.pop("augment", None)
        for classifier, own in parts:
            part = batch.taken(cast(Tensor, own).tolist())
            again: dict[str, Any] = {} if change is None else {"augment": partial(change, seeds=part.seeds)}
            x_adv[own] = self.made(part, classifier, clean_share, **more, **again)
        return x_adv

    def rows(self, batch: Batch) -> list[Tensor]:
        """The images of a batch that are held against each classifier; nothing where there is one, for all."""
        count = len(self._classifiers)
        if count == 1:
            return []
        picks = torch.tensor([seed_of(seed, "classifier") % count for seed in batch.seeds])
        return [torch.nonzero(picks == number).flatten().to(batch.x.device) for number in range(count)]

    def shared_out(self, batch: Batch) -> list[tuple[nn.Module, Tensor | slice]]:
        """The classifiers that images of a batch are held against, and these images."""
        rows = self.rows(batch)
        if not rows:
            return [(self._classifiers[0], slice(None))]
        return [(classifier, own) for classifier, own in zip(self._classifiers, rows, strict=True) if len(own)]

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Attacked images classified right when purified, and not; clean ones when purified."""
        purifier, x_adv = self.setup.network, self.attacked(batch, clean_share=0)
        images = {
            "accuracy_purified": purifier(x_adv),
            "accuracy_adversarial": x_adv,
            "accuracy_clean_purified": purifier(batch.x),
        }
        parts = self.shared_out(batch)
        return {
            name: sum((classifier(x[own]).argmax(dim=1) == batch.y[own]).sum() for classifier, own in parts)
            for name, x in images.items()
        }


def restored_and_loss(network: Any, x_adv: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """A purifier's images of ``x_adv``, and its own loss: by one pass, where it names ``restored_and_loss``."""
    if hasattr(network, "restored_and_loss"):
        restored, loss = network.restored_and_loss(x_adv, x)
        return restored, loss
    return network(x_adv), network.training_loss(x_adv, x)


def train_step(objective: Objective, batch: Batch, step: int) -> tuple[dict[str, Tensor], float]:
    """Let an objective learn from a batch, in the training's precision.

    Returns:
        The losses of this batch (detached scalars, still on the device) and the learning rate.
    """
    setup = objective.setup
    with autocast(setup.device, precision_of(setup.config, setup.device)):
        losses = objective.step(batch, step)
    return losses, objective.optimizations[NETWORK].rate(step)


def check_finite(losses: np.ndarray, rates: Sequence[float], model: nn.Module, *, epoch: int, first_step: int) -> None:
    """Check what was trained before anything of it is kept.

    Args:
        losses: of the steps of an epoch, or of a part of it, of all workers together.
        rates: learning rates of the same steps.
        model: what they left.
        epoch: its number, from 1.
        first_step: number of the first of these steps, from 0.

    Raises:
        DivergedError: a loss, a weight or a running statistic is NaN or infinite; names the epoch, step and rate.
    """
    bad = np.flatnonzero(~np.isfinite(losses))
    broken = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if not len(bad) and not broken:
        return
    index = int(bad[0]) if len(bad) else len(losses) - 1
    what = f"the loss is {losses[index]}" if len(bad) else f"{broken[0]} is not finite"
    raise DivergedError(
        f"the training diverged in epoch {epoch}: {what} at step {first_step + index}, whose learning rate is "
        f"{rates[index]:.4g}. Nothing of it is kept but the checkpoint before. Give a lower --rate or --clip-norm, and "
        "another --output"
    )


def validate(objective: Objective, batches: Iterator[Batch]) -> dict[str, float]:
    """Sums of the objective's scores over ``batches``, in float32, and ``n``, the number of images."""
    sums: dict[str, float] = {"n": 0.0}
    with _judged(objective):
        for batch in batches:
            sums["n"] += len(batch.y)
            for name, value in objective.score(batch).items():
                sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def measure(objective: Objective, batches: Iterator[Batch]) -> Tensor:
    """What an objective that calibrates measures of ``batches``, in float32, on the CPU; (0,) of none."""
    with _judged(objective):
        found = [objective.measured(batch).float().cpu() for batch in batches]
    return torch.cat(found) if found else torch.empty(0)


@contextmanager
def _judged(objective: Objective) -> Iterator[None]:
    """Have an objective's networks in eval, and nothing recorded, in float32."""
    networks = (objective.setup.network, *objective.networks.values())
    for network in networks:
        network.eval()
    with torch.no_grad(), full_float32():
        yield
    for network in networks:
        network.train()


def build_attacks(texts: Sequence[str]) -> tuple[Attack, ...]:
    """Attacks from ``NAME[,KEY=VALUE...]``.

    Raises:
        ValueError: an unknown attack or parameter.
    """
    return tuple(plugins.build("raypurify.attacks", plugins.Spec.parse(text)) for text in texts)


def build_pairs(text: str) -> Pairs:
    """A source of pairs from ``NAME[,KEY=VALUE...]``.

    Raises:
        ValueError: an unknown source or parameter.
    """
    pairs: Pairs = plugins.build("raypurify.training.pairs", plugins.Spec.parse(text))
    return pairs
