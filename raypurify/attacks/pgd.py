"""Projected gradient descent in the L-infinity ball (Madry et al. 2017; the inner maximum of the paper's Eq. 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raypurify.attacks import Attacked
from raypurify.attacks._active import Effort, spread
from raypurify.attacks._gradients import ahead_of, ball, check_epsilon, check_labels, input_gradient, towards, vanishes
from raypurify.seeds import derive, uniform


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Gradient sign steps, each projected back on the ball around the image and on [0, 1].

    Each image's best iterate is returned: the one where its label is the furthest behind the best other class (where
    its target is the furthest ahead), of all starts.
    """

    epsilon: float = 0.3
    """Radius of the L-infinity ball, on pixels in [0, 1]."""
    steps: int = 40
    """How many gradient steps each start takes."""
    step_size: float | None = None
    """Length of a step; epsilon / 30 if None (0.01 at epsilon 0.3, Madry et al.'s MNIST attack), but no less than
    2.5 epsilon / steps, so that few steps still reach the ball's edge."""
    random_start: bool = True
    """Start from a uniform point of the ball instead of from the image."""
    restarts: int = 1
    """How many starts are made. An image that one of them has made wrong is not started again."""
    labels: str = "true"
    """"true", or "predicted": the victim's own labels, which leaks no label (Kurakin et al. 2016)."""

    norm = "linf"

    def __post_init__(self) -> None:
        self._check_epsilon()
        check_labels(self.labels)
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)!r}")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"restarts={self.restarts} would repeat one another; they need random_start")
        if self.step_size is not None and self.step_size <= 0:
            raise ValueError(f"step_size must be above 0; got {self.step_size!r}")

    def _check_epsilon(self) -> None:
        check_epsilon(self.epsilon)

    def __call__(
        self, victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Sequence[int], target: Tensor | None = None
    ) -> Attacked:
        """See :class:`raypurify.attacks.Attack`; the random starts come from ``seeds``."""
        labels, sign = towards(victim, x, y, target, self.labels)
        effort, best = Effort(x), x.clone()
        lowest = torch.full((len(x),), torch.inf, device=x.device)
        effort.queries += self.labels == "predicted"
        active = torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            starts = derive(seeds, "restart", restart) if restart else seeds
            chosen = [starts[image] for image in active.tolist()]
            x_adv, ahead, flat = self._ascend(victim, x[active], labels[active], sign, chosen)
            effort.steps[active] += self.steps
            effort.queries[active] += 2 * self.steps + 1
            if restart == 0:
                effort.first_gradients(active, flat)
            better = ahead < lowest[active]
            best[active[better]], lowest[active[better]] = x_adv[better], ahead[better]
            active = active[lowest[active] >= 0]
            if not len(active):
                break
        return effort.attacked(best)

    def _ascend(
        self, victim: nn.Module, x: Tensor, labels: Tensor, sign: int, seeds: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One start: the best iterates, by how much the label was ahead in them (or the target behind), and whether the
        first gradients were zero. Each iterate is judged by the logits that its gradient took; the last takes one more
        forward pass.
        """
        best, lowest = x, torch.full((len(x),), torch.inf, device=x.device)
        flat = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        x_adv = self._start(x, seeds) if self.random_start else x
        move = self._mover(x, sign)
        for step in range(self.steps + 1):
            if step < self.steps:
                gradient, ahead = input_gradient(victim, x_adv, labels, sign)
            else:
                ahead = ahead_of(victim, x_adv, labels, sign)
            better = sign * ahead < lowest
            best, lowest = torch.where(spread(better, x), x_adv, best), torch.where(better, sign * ahead, lowest)
            if step == 0:
                flat = vanishes(gradient)
            if step < self.steps:
                x_adv = move(x_adv, gradient)
        return best, lowest, flat

    def _start(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        """Points at random in the ball and in [0, 1]."""
        return (x + uniform(seeds, x, -self.epsilon, self.epsilon)).clamp(0, 1)

    def _mover(self, x: Tensor, sign: int) -> Callable[[Tensor, Tensor], Tensor]:
        """From points and gradients: the points after one step along them, or against them where ``sign`` is -1."""
        least = max(self.epsilon / 30, 2.5 * self.epsilon / self.steps)
        step_size = least if self.step_size is None else self.step_size
        low, high = ball(x, self.epsilon)
        return lambda x_adv, gradient: torch.add(x_adv, gradient.sign_(), alpha=sign * step_size).clamp_(low, high)


build = PGD
