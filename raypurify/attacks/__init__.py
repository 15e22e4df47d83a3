"""Attacks make adversarial images against a victim: one file an attack.

A plugin file defines a frozen keyword-only dataclass, whose fields are the attack's parameters, and names it ``build``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from raypurify.attacks._graphs import Graphs as Graphs
from raypurify.attacks._victims import Composite as Composite
from raypurify.attacks._victims import asks_classifier as asks_classifier
from raypurify.attacks._victims import detect as detect
from raypurify.attacks._victims import is_differentiable as is_differentiable
from raypurify.attacks._victims import is_random as is_random
from raypurify.attacks._victims import purify as purify
from raypurify.attacks._victims import victim_of as victim_of
from raypurify.attacks._votes import abstains as abstains
from raypurify.attacks._votes import check_votes as check_votes
from raypurify.seeds import seed_of


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """What an attack returns.

    x_adv: (N, C, H, W) float32 in [0, 1], inside the attack's ball to 1e-6.
    steps, queries: (N,) int64: gradient steps, and images sent through the victim (a backward pass counts as one more).
    zero_gradient: (N,) bool: whether the first gradient that the attack took of an image was zero everywhere, False for
        an image of which it took none; None for an attack that takes no gradient, or does not tell.
    """

    x_adv: Tensor
    steps: Tensor
    queries: Tensor
    zero_gradient: Tensor | None = None


class Attack(Protocol):
    """norm is "linf", "l2", or None for an attack that minimises the distance.

    ``radius`` names the parameter that holds the radius of its ball, on pixels in [0, 1]; None for an attack without a
    ball. An attack that says nothing calls it ``epsilon``. One whose result depends on the batch that an image came in
    says so with ``couples_batch = True``. One that takes gradients under autocast, and judges in float32 all the same,
    says so with ``mixes = True``.
    """

    @property
    def norm(self) -> str | None: ...

    def __call__(
        self, victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Sequence[int], target: Tensor | None = None
    ) -> Attacked:
        """Attack a batch.

        Args:
            victim: (N, C, H, W) float32 in [0, 1] -> logits (N, K); in eval, its parameters frozen.
            x: (N, C, H, W) float32 in [0, 1].
            y: (N,) int64, the true labels.
            seeds: one for each image; all randomness comes from them, so a result does not depend on the batch, to
                rounding.
            target: (N,) int64: go towards these classes instead of away from y.
        """
        ...


def radius_name(attack: Attack) -> str | None:
    """The name of the parameter that holds the radius of an attack's ball; None for an attack without one."""
    name: str | None = getattr(attack, "radius", "epsilon")
    return None if name is None or getattr(attack, name, None) is None else name


def radius_of(attack: Attack) -> float | None:
    """Radius of an attack's ball, on pixels in [0, 1]; None for an attack without one."""
    name = radius_name(attack)
    return None if name is None else getattr(attack, name)


def scaled(attack: Attack, share: float) -> Attack:
    """The attack with ``share`` of its radius; itself where that is all of it, or where it has none."""
    name, radius = radius_name(attack), radius_of(attack)
    if name is None or radius is None or share == 1:
        return attack
    return cast(Attack, replace(cast(Any, attack), **{name: radius * share}))


def run_attack(
    attack: Attack, victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Sequence[int], target: Tensor | None = None
) -> Attacked:
    """What an attack makes of a batch; an image that it turned into NaN or infinity comes back unmodified.

    A prediction of such an image says nothing, so it must not pass for a success.
    """
    result = attack(victim, x, y, seeds=seeds, target=target)
    return replace(result, x_adv=numbers(result.x_adv, x))


def run(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    seed: int = 0,
    first: int = 0,
    target: Tensor | None = None,
) -> Attacked:
    """Attack plain tensors: ``run(PGD(epsilon=8 / 255), model, x, y).x_adv``.

    Args:
        attack: what is done.
        model: (N, C, H, W) in [0, 1] -> logits (N, K); called in eval, and left as it was.
        x: (N, C, H, W) float32 in [0, 1], on the model's device.
        y: (N,) int64, the labels.
        seed: of all randomness, with the numbers of the images.
        first: number of the first image, where these are a part of more.
        target: (N,) int64: go towards these classes instead of away from y.

    Raises:
        ValueError: tensors of other shapes, types or ranges; a model that returns no logits, or knows fewer classes.
    """
    check_attack(attack)
    check_images(x, y, target)
    check_logits(model, x[:1], y if target is None else torch.maximum(y, target))
    seeds = [seed_of(seed, attack, number, 0, 0) for number in range(first, first + len(x))]
    begin_draws = getattr(model, "begin_draws", None)
    if begin_draws is not None:
        begin_draws(attack)
    with torch.no_grad(), frozen(model):
        return run_attack(attack, model, x, y, seeds=seeds, target=target)


def check_attack(attack: Attack) -> None:
    """Refuse what is no attack.

    Raises:
        ValueError: the name or the class of an attack, or something else that is none.
    """
    if isinstance(attack, str | type) or not callable(attack):
        raise ValueError(f"attack: expected an attack such as PGD(epsilon=8 / 255), got {attack!r}")


def check_images(x: Tensor, y: Tensor, target: Tensor | None = None) -> None:
    """Hold images, their labels and the classes that are aimed at against what attacks take.

    Raises:
        ValueError: names the tensor, what is expected, and what came.
    """
    labels = {"y": y} if target is None else {"y": y, "target": target}
    for name, values in {"x": x, **labels}.items():
        if not isinstance(values, Tensor):
            kind = f"{type(values).__module__}.{type(values).__qualname__}"
            raise ValueError(f"{name}: expected a tensor, got a {kind}; give torch.as_tensor({name})")
    if x.ndim != 4 or x.dtype != torch.float32:
        raise ValueError(f"x: expected (N, C, H, W) float32, got {tuple(x.shape)} {x.dtype}")
    if not len(x):
        raise ValueError("x: expected at least one image, got none")
    if not 0 <= x.min() <= x.max() <= 1:
        raise ValueError(f"x: expected pixels in [0, 1], got {x.min():.4g} to {x.max():.4g}")
    for name, values in labels.items():
        if values.shape != x.shape[:1] or values.dtype != torch.int64:
            raise ValueError(f"{name}: expected ({len(x)},) int64, got {tuple(values.shape)} {values.dtype}")
        if values.min() < 0:
            raise ValueError(f"{name}: expected classes from 0 on, got {values.min()}")


def check_logits(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Send images through a model, in eval, and hold what it returns against what attacks take.

    Args:
        model: see :func:`run`.
        x: (N, C, H, W) float32 in [0, 1].
        y: int64, all classes that the model has to know.

    Raises:
        ValueError: the model is none, returns no logits, or knows fewer classes.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a torch.nn.Module, got {model!r}")
    with torch.no_grad(), frozen(model):
        logits = model(x)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        got = f"the shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ValueError(f"model: expected logits (N, K) of at least two classes for {len(x)} image(s), got {got}")
    if y.max() >= logits.shape[1]:
        raise ValueError(f"y: the model knows {logits.shape[1]} classes, from 0 on; got {y.max()}")


@contextmanager
def frozen(victim: nn.Module) -> Iterator[None]:
    """The victim in eval and its parameters frozen, for a time."""
    modes = [(module, module.training) for module in victim.modules()]
    trained = [parameter for parameter in victim.parameters() if parameter.requires_grad]
    try:
        victim.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in trained:
            parameter.requires_grad_(True)


def numbers(x_adv: Tensor, x: Tensor) -> Tensor:
    """``x_adv``, with the image of ``x`` wherever one holds a pixel that is not a finite number."""
    return torch.where(x_adv.isfinite().flatten(1).all(dim=1)[:, None, None, None], x_adv, x)


def counted(x_adv: Tensor, *, steps: int, queries: int, zero_gradient: Tensor | None = None) -> Attacked:
    """An :class:`Attacked` in which every image took the same number of steps and queries."""
    count = torch.full((len(x_adv),), 0, dtype=torch.int64)
    return Attacked(x_adv=x_adv, steps=count + steps, queries=count + queries, zero_gradient=zero_gradient)
