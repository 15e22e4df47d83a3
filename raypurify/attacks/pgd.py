"""Projected gradient descent in the L-infinity ball (Madry et al. 2017; the inner maximum of the paper's Eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raypurify.attacks import Attacked, counted
from raypurify.attacks._gradients import ball, check_epsilon, check_labels, input_gradient, towards
from raypurify.seeds import uniform


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Gradient sign steps, each projected back on the ball around the image and on [0, 1]."""

    epsilon: float = 0.3
    """Radius of the L-infinity ball, on pixels in [0, 1]."""
    steps: int = 40
    """Gradient steps."""
    step_size: float | None = None
    """Length of a step; epsilon / 30 if None (0.01 at epsilon 0.3, Madry et al.'s MNIST attack), but no less than
    2.5 epsilon / steps, so that few steps still reach the ball's edge."""
    random_start: bool = True
    """Start from a uniform point of the ball instead of from the image."""
    labels: str = "true"
    """"true", or "predicted": the victim's own labels, which leaks no label (Kurakin et al. 2016)."""

    norm = "linf"

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_labels(self.labels)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps!r}")
        if self.step_size is not None and self.step_size <= 0:
            raise ValueError(f"step_size must be above 0; got {self.step_size!r}")

    def __call__(
        self, victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Sequence[int], target: Tensor | None = None
    ) -> Attacked:
        """See :class:`raypurify.attacks.Attack`; the random start comes from ``seeds``."""
        step_size = (
            max(self.epsilon / 30, 2.5 * self.epsilon / self.steps) if self.step_size is None else self.step_size
        )
        labels, sign = towards(victim, x, y, target, self.labels)
        x_adv = x
        if self.random_start:
            x_adv = (x + uniform(seeds, x, -self.epsilon, self.epsilon)).clamp(0, 1)
        low, high = ball(x, self.epsilon)
        for _ in range(self.steps):
            gradient = input_gradient(victim, x_adv, labels)
            x_adv = torch.add(x_adv, gradient.sign_(), alpha=sign * step_size).clamp_(low, high)
        return counted(x_adv, steps=self.steps, queries=2 * self.steps + (self.labels == "predicted"))


build = PGD
