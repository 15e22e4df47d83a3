"""Attacks on the classifier, made as the training goes: the attacker does not know the purifier."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from raypurify.pairs import PairSetup, mixture
from raypurify.training import Batch


@dataclass(frozen=True, kw_only=True)
class Attacks:
    """The training's attacks, in equal shares."""

    def __call__(self, batch: Batch, setup: PairSetup) -> Tensor:
        """See :class:`raypurify.pairs.Pairs`."""
        return mixture(batch, setup.classifier, setup)


build = Attacks
