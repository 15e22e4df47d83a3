"""Attacks on the classifier, made as the training goes: the attacker does not know the purifier."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from raypurify.attacks import Attack
from raypurify.pairs import mixture
from raypurify.training import Batch


@dataclass(frozen=True, kw_only=True)
class Attacks:
    """The training's attacks, in equal shares."""

    def __call__(
        self,
        batch: Batch,
        *,
        network: nn.Module,
        classifier: nn.Module,
        attacks: tuple[Attack, ...],
        clean_share: float,
    ) -> Tensor:
        """See :class:`raypurify.pairs.Pairs`."""
        return mixture(batch, classifier, attacks, clean_share)


build = Attacks
