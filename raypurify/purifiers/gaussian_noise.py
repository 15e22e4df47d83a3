"""Gaussian noise, as in randomized smoothing (Cohen et al. 2019): a random purifier that learned nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from raypurify.seeds import normal


class GaussianNoise(nn.Module):
    """Adds noise to each pixel, and clips to [0, 1].

    Args:
        sigma: standard deviation of the noise, on pixels in [0, 1]; at least 0.

    Raises:
        ValueError: sigma is below 0.
    """

    trivial: ClassVar[bool] = True
    random: ClassVar[bool] = True
    reach: ClassVar[int] = 0

    def __init__(self, *, sigma: float = 0.1) -> None:
        super().__init__()
        if sigma < 0:
            raise ValueError(f"sigma must be at least 0, got {sigma!r}")
        self.sigma = sigma

    def unclipped(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        """The noisy images before the clip."""
        return x + self.sigma * normal(seeds, x)

    def forward(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same; one seed for each image."""
        return self.unclipped(x, seeds).clamp(0, 1)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}"


build = GaussianNoise
