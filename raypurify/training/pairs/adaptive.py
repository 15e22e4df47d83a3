"""Attacks on what is trained, made as the training goes: adversarial training (Madry et al. 2017).

A purifier is attacked together with the classifier behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from raypurify.attacks import Composite, frozen, scaled
from raypurify.training.batches import Batch
from raypurify.training.pairs import PairSetup, mixture


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """The training's attacks, in equal shares, through the network as it is at that step."""

    ramp: float = 0.0
    """Share of the training's steps, in [0, 1], in which the radii of the attacks grow from a fifth to the whole. A
    network that has learned nothing yet learns nothing from attacks of full strength."""
    draws: int = 1
    """The attacks follow the mean of the logits over this number of draws of a random purifier."""

    def __post_init__(self) -> None:
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp must be in [0, 1]; got {self.ramp!r}")

    def __call__(self, batch: Batch, setup: PairSetup) -> Tensor:
        """See :class:`raypurify.training.pairs.Pairs`; the network is attacked in eval, so that its statistics stay."""
        victim = setup.network
        if setup.classifier is not None:
            victim = Composite(setup.classifier, setup.network, draws=self.draws)
        share = 1.0 if setup.progress >= self.ramp else 0.2 + 0.8 * setup.progress / self.ramp
        attacks = tuple(scaled(attack, share) for attack in setup.attacks)
        with frozen(victim):
            return mixture(batch, victim, replace(setup, attacks=attacks))


build = Adaptive
