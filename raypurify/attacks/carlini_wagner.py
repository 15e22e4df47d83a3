"""Carlini and Wagner's attack in L2 (2017; the paper's CWA), for a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raypurify.attacks import Attacked
from raypurify.attacks._active import Effort, begin_draws, exactly, margin, spread, takes_shortcuts, verdict_of
from raypurify.attacks._gradients import check_gradient, input_gradient, slope, vanishes

CHECKS = 10
"""How often in a descent an image is asked whether it still improves."""
DROP = 0.3
"""Factor of an image's rate when its descent stalls."""


@dataclass(frozen=True, kw_only=True)
class CarliniWagner:
    """The least ||x_adv - x||^2 + c max(margin + confidence, 0), by Adam in tanh space, c found by bisection.

    The margin is that of the true class over the best other one (of the best other one over the target). Pixels are
    drawn off the edges of [0, 1] by ``edge``: tanh would hold those on an edge there forever. Each image has a c, an
    optimiser and an early stop of its own; the nearest image that fooled the victim is kept, whatever its c. Under
    autocast all descents but the last compute in its type, and what they find is asked of the victim in float32.
    """

    confidence: float = 0.0
    """Margin by which another class has to win, in logits (the kappa of the literature)."""
    search_steps: int = 5
    """How many values of c are tried."""
    steps: int = 200
    """The largest number of steps of Adam for each c."""
    initial_c: float = 1.0
    """The first c: ten times as much after each failure until one succeeds, then bisection."""
    rate: float = 0.1
    """Adam's step at the beginning of a descent, in tanh space."""
    decay: float = 0.1
    """Adam's least step, as a share of the first: an image's shrinks when its descent stalls."""
    edge: float = 1e-3
    """How far the pixels are drawn off the edges of [0, 1]."""
    tolerance: float = 0.02
    """An image's descent stalls when a tenth of the steps lowered its loss by less than this share: it goes on with a
    smaller step, and leaves when its step is the least."""

    norm = None
    radius = None
    mixes = True

    def __post_init__(self) -> None:
        for name in ("search_steps", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)!r}")
        for name in ("initial_c", "rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)!r}")
        if self.confidence < 0 or self.tolerance < 0:
            raise ValueError(f"confidence and tolerance must be at least 0; got {self}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be above 0 and at most 1; got {self.decay!r}")
        if not 0 < self.edge < 0.5:
            raise ValueError(f"edge must be in (0, 0.5); got {self.edge!r}")

    def __call__(
        self, victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Sequence[int], target: Tensor | None = None
    ) -> Attacked:
        """See :class:`raypurify.attacks.Attack`; nothing is random."""
        found = Nearest(x)
        effort = Effort(x)
        gradient, _ = input_gradient(victim, x, y if target is None else target)
        effort.step(slice(None))
        effort.first_gradients(slice(None), vanishes(gradient))
        c = torch.full_like(found.l2, self.initial_c)
        low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
        for search_step in range(self.search_steps):
            begin_draws(victim, "descent", search_step)
            with exactly(x, enabled=search_step == self.search_steps - 1):
                fooled = self._descend(victim, x, y, target, c, found, effort)
            high, low = torch.where(fooled, c, high), torch.where(fooled, low, c)
            c = torch.where(high.isinf(), 10 * c, (low + high) / 2)
        return effort.attacked(found.x_adv)

    def _descend(
        self, victim: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, c: Tensor, found: Nearest, effort: Effort
    ) -> Tensor:
        """One descent of every image, with its ``c`` (N,); which images it made that fool the victim: (N,) bool."""
        fooled = torch.zeros_like(c, dtype=torch.bool)
        active = torch.arange(len(x), device=x.device)
        w = torch.atanh((2 * x - 1) * (1 - 2 * self.edge))
        adam = Adam(w)
        rate, least = torch.full_like(c, self.rate), self.rate * self.decay
        before = torch.full_like(c, torch.inf)
        for step in range(self.steps):
            labels = (y if target is None else target)[active]
            x_adv, excess, loss, gradient = self._losses(victim, w, x[active], labels, target is not None, c[active])
            effort.step(active)
            hits = self._hits(excess)
            if takes_shortcuts(x):
                near = (x_adv - x[active]).flatten(1).norm(dim=1) < found.l2[active]
                asked = torch.nonzero(hits & (near | ~fooled[active])).flatten()
                effort.look(active[asked])
                ahead = margin(verdict_of(victim, x_adv[asked]), labels[asked])
                hits = torch.zeros_like(hits)
                hits[asked] = self._hits(ahead if target is None else -ahead)
            fooled[active[hits]] = True
            found.keep(active[hits], x_adv[hits], x[active[hits]])
            w = adam.step(w, gradient, spread(rate, w))
            if (step + 1) % max(1, self.steps // CHECKS) == 0:
                stalled = ~(loss < (1 - self.tolerance) * before)
                going = ~stalled | (rate > least)
                if not going.any():
                    break
                rate = torch.where(stalled, (rate * DROP).clamp_min(least), rate)[going]
                active, w, before = active[going], w[going], loss[going]
                adam.select(going)
        return fooled

    def _hits(self, excess: Tensor) -> Tensor:
        """Which images fool the victim as they should, by their margins (N,): (N,) bool."""
        return excess <= -self.confidence if self.confidence else excess < 0

    def _losses(
        self, victim: nn.Module, w: Tensor, x: Tensor, labels: Tensor, targeted: bool, c: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images, margins (N,) (below 0: fooled), losses (N,), and the losses' gradient by ``w``."""
        with torch.enable_grad():
            w = w.detach().requires_grad_(True)
            x_adv = (torch.tanh(w) + 1) / 2
            ahead = margin(victim(x_adv).float(), labels)
            check_gradient(ahead)  # the distance has one in any case
            excess = -ahead if targeted else ahead
            distance = (x_adv - x).flatten(1).square().sum(dim=1)
            loss = distance + c * (excess + self.confidence).clamp_min(0)
            gradient = slope(loss.sum(), w)
        return x_adv.detach(), excess.detach(), loss.detach(), gradient


class Nearest:
    """The nearest image that fooled the victim, for each image: the clean one while there is none."""

    def __init__(self, x: Tensor) -> None:
        self.x_adv = x.clone()
        self.l2 = torch.full((len(x),), torch.inf, device=x.device)

    def keep(self, images: Tensor, x_adv: Tensor, x: Tensor) -> None:
        """Keep what is nearer than before: ``x_adv`` (M, C, H, W) of the images with these numbers (M,)."""
        l2 = (x_adv - x).flatten(1).norm(dim=1)
        nearer = l2 < self.l2[images]
        self.l2[images[nearer]] = l2[nearer]
        self.x_adv[images[nearer]] = x_adv[nearer]


class Adam:
    """Adam (Kingma and Ba 2014) for a batch from which images leave."""

    def __init__(self, like: Tensor) -> None:
        self.count = 0
        self.mean, self.square = torch.zeros_like(like), torch.zeros_like(like)

    def step(self, value: Tensor, gradient: Tensor, rate: Tensor) -> Tensor:
        """``value`` after one step of length ``rate`` (N, 1, 1, 1)."""
        self.count += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient.square(), 0.001)
        mean, square = self.mean / (1 - 0.9**self.count), self.square / (1 - 0.999**self.count)
        return value - rate * mean / (square.sqrt() + 1e-8)

    def select(self, keep: Tensor) -> None:
        """Go on with the rows for which ``keep`` (N,) is True."""
        self.mean, self.square = self.mean[keep], self.square[keep]


build = CarliniWagner
