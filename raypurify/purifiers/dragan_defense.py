"""DRAGAN-Defense (ArjomandBigdeli et al. 2020): Defense-GAN's projection on a generator that is trained as a DRAGAN."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from raypurify.purifiers._generative import (
    PENALTY,
    GenerativeConfig,
    GenerativeObjective,
    Projection,
    cross_entropy,
)
from raypurify.purifiers._generative import params_for as params_for
from raypurify.purifiers.defense_gan import INFERENCE as INFERENCE
from raypurify.seeds import derive, uniform
from raypurify.training.batches import Batch

SPREAD = 0.5
"""How far the penalty's points lie from real images at most, in standard deviations of an image's pixels."""


class RegretObjective(GenerativeObjective):
    """GAN with a penalty of the discriminator's slope around real images (Kodali et al. 2017).

    The weight is 10, and the points are real images plus 0.5 of a standard deviation times a uniform number in [0, 1)
    for each pixel, all of it times another for each image, as in its authors' code. They take the deviation of the
    batch; here it is each image's own, so that a training does not depend on how a batch is shared out.
    """

    def draws(self, batch: Batch) -> Tensor:
        """See :meth:`GenerativeObjective.draws`: the share of the spread that each pixel's point is away."""
        share = uniform(derive(batch.seeds, "share"), batch.x.new_empty(len(batch.x), 1, 1, 1), 0, 1)
        return share * uniform(derive(batch.seeds, "around"), batch.x, 0, 1)

    def of_critic(self, real: Tensor, fake: Tensor, draws: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`GenerativeObjective.of_critic`: ``loss`` is the discriminator's cross-entropy."""
        spread = SPREAD * real.flatten(1).std(dim=1).view(-1, 1, 1, 1)
        penalty = self.penalty(real + spread * draws)
        told = cross_entropy(self.critic(real), 1.0) + cross_entropy(self.critic(fake), 0.0)
        return told + PENALTY * penalty, {"loss": told, "penalty": penalty}

    def of_generator(self, fake: Tensor) -> Tensor:
        """See :meth:`GenerativeObjective.of_generator`."""
        return cross_entropy(self.critic(fake), 1.0)


def build(**params: Any) -> Projection:
    """DRAGAN-Defense with random weights; ``params`` are :class:`GenerativeConfig`'s fields."""
    return Projection(GenerativeConfig(**params))


objective = RegretObjective
