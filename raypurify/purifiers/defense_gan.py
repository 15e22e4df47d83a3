"""Defense-GAN (Samangouei et al. 2018): the nearest image that a generator, trained as a WGAN-GP, can make."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from raypurify.purifiers._generative import (
    PENALTY,
    GenerativeConfig,
    GenerativeObjective,
    Projection,
)
from raypurify.purifiers._generative import params_for as params_for
from raypurify.seeds import derive, uniform
from raypurify.training.batches import Batch

INFERENCE = ("restarts", "steps", "rate", "momentum", "unrolled")
"""Parameters that may be given beside a checkpoint: they change no weight."""


class WassersteinObjective(GenerativeObjective):
    """WGAN with a penalty of the critic's slope between real and generated images (Gulrajani et al. 2017).

    Five steps of the critic for each of the generator, Adam (0.5, 0.9), weight 10, as Defense-GAN's authors trained:
    200,000 steps of 50 images at a rate of 1e-4.
    """

    critic_steps = 5

    def draws(self, batch: Batch) -> Tensor:
        """See :meth:`GenerativeObjective.draws`: where each point lies between its images, (N, 1, 1, 1)."""
        return uniform(derive(batch.seeds, "share"), batch.x.new_empty(len(batch.x), 1, 1, 1), 0, 1)

    def of_critic(self, real: Tensor, fake: Tensor, draws: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`GenerativeObjective.of_critic`: ``loss`` is the Wasserstein distance that the critic tells."""
        penalty = self.penalty(draws * real + (1 - draws) * fake)
        distance = self.critic(real).mean() - self.critic(fake).mean()
        return PENALTY * penalty - distance, {"loss": distance, "penalty": penalty}

    def of_generator(self, fake: Tensor) -> Tensor:
        """See :meth:`GenerativeObjective.of_generator`."""
        return -self.critic(fake).mean()


def build(**params: Any) -> Projection:
    """Defense-GAN with random weights; ``params`` are :class:`GenerativeConfig`'s fields."""
    return Projection(GenerativeConfig(**params))


objective = WassersteinObjective
