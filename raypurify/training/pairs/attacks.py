"""Attacks on the classifier, made as the training goes: the attacker does not know the purifier."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from raypurify.training.batches import Batch
from raypurify.training.pairs import PairSetup, mixture


@dataclass(frozen=True, kw_only=True)
class Attacks:
    """The training's attacks, in equal shares."""

    def __call__(self, batch: Batch, setup: PairSetup) -> Tensor:
        """See :class:`raypurify.training.pairs.Pairs`."""
        assert setup.classifier is not None
        return mixture(batch, setup.classifier, setup)


build = Attacks
