"""Gaussian noise instead of an attack, as a denoiser for randomized smoothing is trained (Salman et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raypurify.seeds import derive, normal, uniform
from raypurify.training.batches import Batch
from raypurify.training.pairs import PairSetup, choices


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Each pixel plus noise; no attack is made."""

    sigma: float = 0.25
    """Standard deviation, on pixels in [0, 1]."""
    least: float | None = None
    """With a number, each image has noise of a standard deviation of its own, between this one and ``sigma``."""
    clip: bool = True
    """Clip noisy images to [0, 1]. raypurify certify does not by default: then a denoiser sees what it was trained on
    without."""

    def __post_init__(self) -> None:
        if self.sigma <= 0:
            raise ValueError(f"sigma must be above 0; got {self.sigma!r}")
        if self.least is not None and not 0 <= self.least <= self.sigma:
            raise ValueError(f"least must be at least 0 and at most sigma = {self.sigma!r}; got {self.least!r}")

    def __call__(self, batch: Batch, setup: PairSetup) -> Tensor:
        """See :class:`raypurify.training.pairs.Pairs`."""
        noisy = batch.x + self._sigmas(batch) * normal(derive(batch.seeds, "noise", *setup.of_draw), batch.x)
        noisy = noisy.clamp(0, 1) if self.clip else noisy
        chosen = torch.from_numpy(choices(batch, 1, setup.clean_share) == 0).to(batch.x.device)
        return torch.where(chosen[:, None, None, None], noisy, batch.x)

    def _sigmas(self, batch: Batch) -> float | Tensor:
        """The standard deviation of each image's noise."""
        if self.least is None:
            return self.sigma
        return uniform(derive(batch.seeds, "sigma"), batch.x[:, :1, :1, :1], self.least, self.sigma)


build = Noise
