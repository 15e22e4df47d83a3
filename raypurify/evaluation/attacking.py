"""Attacks, in an arithmetic that is fast where that cannot make them weaker, and purifiers, on one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from raypurify import models
from raypurify.attacks import Attack, Attacked, is_random, purify, radius_of, run_attack

AttackPrecision = Literal["auto", "float32", "bfloat16"]


def settled(precision: AttackPrecision, device: str) -> models.Precision:
    """``precision``, where auto is what is fast on a device: bfloat16 on a GPU and on CPUs with instructions for it."""
    if precision != "auto":
        return precision
    return "bfloat16" if device.startswith("cuda") else models.fast_precision(device)


def is_mixed(attack: Attack, precision: models.Precision) -> bool:
    """Whether an attack computes in bfloat16, and in float32 where it must.

    One in a ball does: it is over when the image is wrong. The distance of one that minimises it would grow, but where
    the attack itself tells what may be computed so (``mixes``). One whose images depend on their batch cannot go on
    with some of them.
    """
    in_ball = attack.norm is not None and radius_of(attack) is not None
    able = (in_ball and not getattr(attack, "couples_batch", False)) or _mixes(attack)
    return precision == "bfloat16" and able


def _mixes(attack: Attack) -> bool:
    return bool(getattr(attack, "mixes", False))


def begins_in(attack: Attack, precision: AttackPrecision, purifier: models.Model | None) -> models.Precision:
    """What an attack computes in, or begins in, where the attacker knows a ``purifier``, or none.

    It is float32 through a purifier whose answer to an image is another each time.
    """
    mixed = is_mixed(attack, settled(precision, "cpu"))
    draws = mixed and purifier is not None and is_random(purifier.build())
    return "bfloat16" if mixed and not draws else "float32"


def attack_batch(
    attack: Attack,
    victim: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    seeds: Sequence[int],
    device: str,
    precision: models.Precision,
) -> Attacked:
    """What an attack makes of a batch, in an arithmetic; whether an image is wrong is always told in float32.

    In bfloat16, an attack in a ball is made in bfloat16, and then made in float32 of those images that the victim still
    gets right. So it fools each image that it fools in bfloat16, and each of the others that it fools in float32. An
    attack that ``mixes`` decides for itself what is computed in which.

    Args:
        attack: see :func:`is_mixed`.
        victim: see :class:`raypurify.attacks.Attack`; it draws nothing at random.
        x: (N, C, H, W) float32 in [0, 1], on the device.
        y: (N,) int64, the labels.
        seeds: one for each image.
        device: of the tensors.
        precision: of the attack.
    """
    if not is_mixed(attack, precision):
        return run_attack(attack, victim, x, y, seeds=seeds)
    if _mixes(attack):
        with models.full_float32(), models.autocast(device, "bfloat16"):
            return run_attack(attack, victim, x, y, seeds=seeds)
    with models.autocast(device, "bfloat16"):
        made = run_attack(attack, victim, x, y, seeds=seeds)
    with torch.no_grad(), models.autocast(device, "float32"):
        withstood = victim(made.x_adv).argmax(dim=1) == y
        if (suspicion := getattr(victim, "suspicion", None)) is not None:
            withstood |= suspicion(made.x_adv) > 0
        right = torch.nonzero(withstood).flatten()
        if not len(right):
            return made
        again = run_attack(attack, victim, x[right], y[right], seeds=[seeds[row] for row in right.tolist()])
    x_adv, steps, queries = made.x_adv.clone(), made.steps.clone(), made.queries.clone()
    x_adv[right] = again.x_adv
    steps[right.to(steps.device)] += again.steps
    queries[right.to(queries.device)] += again.queries
    return replace(made, x_adv=x_adv, steps=steps, queries=queries)


def restored(purifier: nn.Module, name: str, x: Tensor, seeds: Sequence[int]) -> Tensor:
    """The images (N, C, H, W) as a purifier restores them, each by its own seed where it is random.

    Raises:
        ValueError: pixels that are no finite numbers, by the purifier's ``name``.
    """
    x_pure = purify(purifier, x, seeds)
    if not x_pure.isfinite().all():
        raise ValueError(f"{name} made pixels that are no finite numbers")
    return x_pure
