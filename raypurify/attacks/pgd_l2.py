"""Projected gradient descent in the L2 ball (Madry et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raypurify.attacks._active import spread
from raypurify.attacks.pgd import PGD
from raypurify.seeds import derive, normal, uniform


@dataclass(frozen=True, kw_only=True)
class PGDL2(PGD):
    """Steps of one length along the gradient, each projected back on the ball around the image, then on [0, 1].

    Each image's best iterate is returned, as by PGD.
    """

    epsilon: float = 2.0
    """Radius of the L2 ball, on pixels in [0, 1]."""
    step_size: float | None = None
    """Length of a step; 2.5 epsilon / steps if None."""

    norm = "l2"

    def _check_epsilon(self) -> None:
        if self.epsilon < 0:
            raise ValueError(f"epsilon must be at least 0; got {self.epsilon!r}")

    def _start(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        """Points at random in the ball, each distance from the image as likely as the others, and in [0, 1]."""
        direction = _unit(normal(seeds, x))
        distance = uniform(derive(seeds, "distance"), x[:, :1, :1, :1], 0, self.epsilon)
        return (x + distance * direction).clamp(0, 1)

    def _mover(self, x: Tensor, sign: int) -> Callable[[Tensor, Tensor], Tensor]:
        """See :class:`PGD`. A clip to [0, 1] brings no point further from the image, which is in there."""
        step_size = 2.5 * self.epsilon / self.steps if self.step_size is None else self.step_size

        def move(x_adv: Tensor, gradient: Tensor) -> Tensor:
            away = x_adv + sign * step_size * _unit(gradient) - x
            length = away.flatten(1).norm(dim=1).clamp_min(1e-12)
            return (x + away * spread((self.epsilon / length).clamp_max(1), x)).clamp(0, 1)

        return move


def _unit(vectors: Tensor) -> Tensor:
    """Each image's direction, at length 1; 0 where it has none."""
    length = vectors.flatten(1).norm(dim=1)
    return vectors / spread(torch.where(length > 0, length, 1), vectors)


build = PGDL2
