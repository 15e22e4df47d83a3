"""Attacks on classifier∘purifier, made as the training goes: adversarial training (Madry et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from raypurify.attacks import frozen
from raypurify.purifiers import Composite
from raypurify.training import Batch
from raypurify.training.pairs import PairSetup, mixture


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """The training's attacks, in equal shares, through the purifier as it is at that step."""

    draws: int = 1
    """Of a random purifier, whose logits are averaged."""

    def __call__(self, batch: Batch, setup: PairSetup) -> Tensor:
        """See :class:`raypurify.training.pairs.Pairs`; the network is attacked in eval, so that its statistics stay."""
        victim = Composite(setup.classifier, setup.network, draws=self.draws)
        with frozen(victim):
            return mixture(batch, victim, setup)


build = Adaptive
