"""DeepFool in L2 (Moosavi-Dezfooli et al. 2016; the paper's DFA), for a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raypurify.attacks import Attacked
from raypurify.attacks._active import Effort, fools, rivals, spread, takes_shortcuts, verdict_of
from raypurify.attacks._gradients import check_gradient

FLAT = torch.finfo(torch.float32).tiny ** 0.5
"""Length of a gradient, in logits per unit of pixels, up to which it counts as zero."""


@dataclass(frozen=True, kw_only=True)
class DeepFool:
    """Steps to the nearest boundary of the linearised classifier, until the image has crossed it.

    The image found so far is projected on [0, 1]; then its whole way from the clean image is stretched by 1 + overshoot
    (a stretch of each step, undone by the projection, would let images stop on the boundary). The classes looked at are
    those that score highest on the clean image; the race goes on among those whose boundaries were nearest at the first
    linearisation. An image that is fooled leaves the batch; one that is still right after the last step comes back
    unmodified, and so does one that was wrong at first.
    """

    steps: int = 50
    """The largest number of linearisations."""
    overshoot: float = 0.02
    """How far the perturbation goes beyond the boundary, as a share of its length."""
    candidates: int = 10
    """Classes that are looked at first, the image's own among them."""
    contenders: int = 3
    """Boundaries that are looked at after the first linearisation, the nearest at it: most of an attack's cost is one
    pass back for each. On MNIST's A-net 2 and 9 (all: the paper's algorithm) give the same median distance."""

    norm = None
    radius = None
    mixes = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps!r}")
        if self.overshoot < 0:
            raise ValueError(f"overshoot must be at least 0; got {self.overshoot!r}")
        if self.candidates < 2:
            raise ValueError(f"candidates must be at least 2; got {self.candidates!r}")
        if self.contenders < 1:
            raise ValueError(f"contenders must be at least 1; got {self.contenders!r}")

    def __call__(
        self, victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Sequence[int], target: Tensor | None = None
    ) -> Attacked:
        """See :class:`raypurify.attacks.Attack`; nothing is random. With ``target``, only its boundary is looked at."""
        result, effort = x.clone(), Effort(x)
        logits = verdict_of(victim, x)
        effort.look()
        own = y if target is None else logits.argmax(dim=1)
        others = rivals(logits, y, self.candidates - 1) if target is None else target[:, None]
        active = torch.nonzero(~fools(logits, y, target)).flatten()
        point = x[active]
        for count in range(self.steps):
            if not len(active):
                break
            clean, goal = x[active], None if target is None else target[active]
            step, distances = boundary_step(victim, point, own[active], others[active])
            effort.step(active, backward=others.shape[1])
            if count == 0:
                effort.first_gradients(active, distances.isinf().all(dim=1))
            if others.shape[1] > self.contenders:
                others = nearest(others, active, distances, self.contenders)
            point = (point + step).clamp_(0, 1)
            x_adv = (clean + (1 + self.overshoot) * (point - clean)).clamp_(0, 1)
            logits = verdict_of(victim, x_adv)
            effort.look(active)
            if target is not None:
                own[active] = logits.argmax(dim=1)
            fooled = fools(logits, y[active], goal)
            result[active[fooled]] = x_adv[fooled]
            active, point = active[~fooled], point[~fooled]
        return effort.attacked(result)


def boundary_step(victim: nn.Module, x: Tensor, own: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The shortest step to a boundary between class ``own`` (N,) and one of ``others`` (N, k), and all the distances.

    The boundaries are those of the classifier linearised at ``x``: one without a slope is infinitely far, and the step
    is zero where all are. One forward pass (two under autocast: slopes are computed in its type, and distances in
    float32), and k passes back of the whole batch: k in one (``is_grads_batched``) took 1.5 times as long on a CPU, and
    needs victims that can be vmapped.

    Returns:
        the step (N, C, H, W), and the distance of each boundary (N, k).
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = victim(x).float()
        check_gradient(logits)
        gaps = _gaps(logits, own, others)
        slopes = torch.stack([torch.autograd.grad(gap.sum(), x, retain_graph=True)[0] for gap in gaps], dim=1)
    if takes_shortcuts(x):
        # A slope may be a little off. Where the boundary is may not.
        gaps = _gaps(verdict_of(victim, x.detach()), own, others)
    lengths = slopes.flatten(2).norm(dim=2)
    flat = ~(lengths > FLAT)
    distances = (gaps.detach().T.abs() / lengths).masked_fill(flat, torch.inf)
    images = torch.arange(len(x), device=x.device)
    first = distances.argmin(dim=1)
    scale = (distances / lengths).masked_fill(flat, 0)[images, first]
    step = spread(scale, x) * slopes[images, first]
    return step.masked_fill(~spread(scale > 0, x), 0), distances


def _gaps(logits: Tensor, own: Tensor, others: Tensor) -> Tensor:
    """By how much the logits of ``others`` (N, k) are ahead of those of ``own`` (N,): (k, N)."""
    return (logits.gather(1, others) - logits.gather(1, own[:, None])).T


def nearest(others: Tensor, active: Tensor, distances: Tensor, count: int) -> Tensor:
    """The ``count`` classes of ``others`` (N, k) with the least ``distances``, which active (M,) images have (M, k)."""
    kept = others[:, :count].clone()
    kept[active] = others[active].gather(1, distances.topk(count, dim=1, largest=False).indices)
    return kept


build = DeepFool
