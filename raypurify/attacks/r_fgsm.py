"""FGSM after a random step (Tramèr et al. 2017's R+FGSM; the paper's Eqs. 2-3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from raypurify.attacks import Attacked, counted
from raypurify.attacks._gradients import check_epsilon, check_labels, input_gradient, towards, vanishes
from raypurify.seeds import normal


@dataclass(frozen=True, kw_only=True)
class RFGSM:
    """A random sign step of size phi, then a gradient sign step of size epsilon - phi.

    The paper's Eq. 3 prints the gradient without its sign; Tramèr et al. take the sign, and so does this.
    """

    epsilon: float = 0.3
    """Radius of the L-infinity ball, on pixels in [0, 1]."""
    phi: float | None = None
    """Size of the random step, below epsilon; epsilon / 2 if None, as in Tramèr et al."""
    labels: str = "true"
    """"true", or "predicted": the victim's own labels, which leaks no label (Kurakin et al. 2016)."""

    norm = "linf"

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_labels(self.labels)
        if self.phi is not None and not 0 <= self.phi <= self.epsilon:
            raise ValueError(f"phi must be in [0, epsilon={self.epsilon}]; got {self.phi!r}")

    def __call__(
        self, victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Sequence[int], target: Tensor | None = None
    ) -> Attacked:
        """See :class:`raypurify.attacks.Attack`; the random step comes from ``seeds``."""
        phi = self.epsilon / 2 if self.phi is None else self.phi
        labels, sign = towards(victim, x, y, target, self.labels)
        x_random = (x + phi * normal(seeds, x).sign()).clamp(0, 1)
        gradient, _ = input_gradient(victim, x_random, labels, sign)
        x_adv = (x_random + sign * (self.epsilon - phi) * gradient.sign()).clamp(0, 1)
        queries = 2 + (self.labels == "predicted")
        return counted(x_adv, steps=1, queries=queries, zero_gradient=vanishes(gradient))


build = RFGSM
