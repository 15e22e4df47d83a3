"""Gaussian noise instead of an attack, as a denoiser for randomized smoothing is trained (Salman et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raypurify.seeds import derive, normal
from raypurify.training import Batch
from raypurify.training.pairs import PairSetup, choices


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Each pixel plus noise, clipped to [0, 1]; no attack is made."""

    sigma: float = 0.25
    """Standard deviation, on pixels in [0, 1]."""

    def __post_init__(self) -> None:
        if self.sigma <= 0:
            raise ValueError(f"sigma must be above 0; got {self.sigma!r}")

    def __call__(self, batch: Batch, setup: PairSetup) -> Tensor:
        """See :class:`raypurify.training.pairs.Pairs`."""
        noisy = (batch.x + self.sigma * normal(derive(batch.seeds, "noise"), batch.x)).clamp(0, 1)
        chosen = torch.from_numpy(choices(batch, 1, setup.clean_share) == 0).to(batch.x.device)
        return torch.where(chosen[:, None, None, None], noisy, batch.x)


build = Noise
