"""DeepFool in L2 (Moosavi-Dezfooli et al. 2016; the paper's DFA), for a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raypurify.attacks import Attacked
from raypurify.attacks._active import Effort, fools, logits_of, rivals, spread


@dataclass(frozen=True, kw_only=True)
class DeepFool:
    """Steps to the nearest boundary of the linearised classifier, until the image has crossed it.

    The image found so far is projected on [0, 1]; then its whole way from the clean image is stretched by 1 + overshoot
    (a stretch of each step, undone by the projection, would let images stop on the boundary). The classes looked at are
    those that score highest on the clean image. An image that is fooled leaves the batch; one that is still right after
    the last step comes back unmodified, and so does one that was wrong at first.
    """

    steps: int = 50
    """At most so many linearisations."""
    overshoot: float = 0.02
    """How far the perturbation goes beyond the boundary, as a share of its length."""
    candidates: int = 10
    """Classes that are looked at, the image's own among them."""

    norm = None
    epsilon = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps!r}")
        if self.overshoot < 0:
            raise ValueError(f"overshoot must be at least 0; got {self.overshoot!r}")
        if self.candidates < 2:
            raise ValueError(f"candidates must be at least 2; got {self.candidates!r}")

    def __call__(
        self, victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Sequence[int], target: Tensor | None = None
    ) -> Attacked:
        """See :class:`raypurify.attacks.Attack`; nothing is random. With ``target``, only its boundary is looked at."""
        result, effort = x.clone(), Effort(x)
        logits = logits_of(victim, x)
        effort.look()
        own = y if target is None else logits.argmax(dim=1)
        others = rivals(logits, y, self.candidates - 1) if target is None else target[:, None]
        active = torch.nonzero(~fools(logits, y, target)).flatten()
        point = x[active]
        for _ in range(self.steps):
            if not len(active):
                break
            clean, goal = x[active], None if target is None else target[active]
            step = boundary_step(victim, point, own[active], others[active])
            effort.step(active, backward=others.shape[1])
            point = (point + step).clamp_(0, 1)
            x_adv = (clean + (1 + self.overshoot) * (point - clean)).clamp_(0, 1)
            logits = logits_of(victim, x_adv)
            effort.look(active)
            if target is not None:
                own[active] = logits.argmax(dim=1)
            fooled = fools(logits, y[active], goal)
            result[active[fooled]] = x_adv[fooled]
            active, point = active[~fooled], point[~fooled]
        return effort.attacked(result)


def boundary_step(victim: nn.Module, x: Tensor, own: Tensor, others: Tensor) -> Tensor:
    """The shortest step (N, C, H, W) to a boundary between class ``own`` (N,) and one of ``others`` (N, k).

    The boundaries are those of the classifier linearised at ``x``; one forward pass, and k backward passes in one.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = victim(x).float()
        gaps = logits.gather(1, others) - logits.gather(1, own[:, None])
        each = torch.eye(others.shape[1], device=x.device)[:, None, :].expand(-1, len(x), -1)
        (slopes,) = torch.autograd.grad(gaps, x, each, is_grads_batched=True)
    lengths = slopes.flatten(2).norm(dim=2).clamp_min(torch.finfo(slopes.dtype).tiny ** 0.5).T
    distances = gaps.detach().abs() / lengths
    nearest = distances.argmin(dim=1)
    images = torch.arange(len(x), device=x.device)
    scale = distances[images, nearest] / lengths[images, nearest]
    return spread(scale, x) * slopes[nearest, images]


build = DeepFool
