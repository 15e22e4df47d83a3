"""Attacks on classifier∘purifier, made as the training goes: adversarial training (Madry et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from raypurify.attacks import Attack, frozen
from raypurify.evaluation.adaptive import Composite
from raypurify.pairs import mixture
from raypurify.training import Batch


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """The training's attacks, in equal shares, through the purifier as it is at that step."""

    draws: int = 1
    """Of a random purifier, whose logits are averaged."""

    def __call__(
        self,
        batch: Batch,
        *,
        network: nn.Module,
        classifier: nn.Module,
        attacks: tuple[Attack, ...],
        clean_share: float,
    ) -> Tensor:
        """See :class:`raypurify.pairs.Pairs`; the network is attacked in eval, so that its statistics stay."""
        victim = Composite(classifier, network, draws=self.draws)
        with frozen(victim):
            return mixture(batch, victim, attacks, clean_share)


build = Adaptive
