"""The fast gradient sign method (Goodfellow et al. 2014; the paper's Eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from raypurify.attacks import Attacked, counted
from raypurify.attacks._gradients import check_epsilon, check_labels, input_gradient, towards, vanishes


@dataclass(frozen=True, kw_only=True)
class FGSM:
    """One step of size epsilon along the sign of the gradient, clipped to [0, 1]."""

    epsilon: float = 0.3
    """Radius of the L-infinity ball, on pixels in [0, 1]."""
    labels: str = "true"
    """"true", or "predicted": the victim's own labels, which leaks no label (Kurakin et al. 2016)."""

    norm = "linf"

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_labels(self.labels)

    def __call__(
        self, victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Sequence[int], target: Tensor | None = None
    ) -> Attacked:
        """See :class:`raypurify.attacks.Attack`; nothing is random."""
        labels, sign = towards(victim, x, y, target, self.labels)
        gradient, _ = input_gradient(victim, x, labels, sign)
        x_adv = (x + sign * self.epsilon * gradient.sign()).clamp(0, 1)
        queries = 2 + (self.labels == "predicted")
        return counted(x_adv, steps=1, queries=queries, zero_gradient=vanishes(gradient))


build = FGSM
