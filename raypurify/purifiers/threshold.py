"""Threshold of the pixels: on MNIST, whose pixels are nearly black and white, a strong defense that learns nothing."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn


class Threshold(nn.Module):
    """1 where a pixel is at least ``level``, else 0: (N, C, H, W) in [0, 1] to the same.

    The output carries no gradient: that of a step is zero everywhere, and would look like a robust defense to an
    attacker.

    Args:
        level: above 0 and at most 1, pixel value.

    Raises:
        ValueError: level is out of range.
    """

    trivial: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    reach: ClassVar[int] = 0

    def __init__(self, *, level: float = 0.5) -> None:
        super().__init__()
        if not isinstance(level, int | float) or not 0 < level <= 1:
            raise ValueError(f"level must be a number above 0 and at most 1, got {level!r}")
        self.level = level

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return (x >= self.level).to(x.dtype)

    def extra_repr(self) -> str:
        return f"level={self.level}"


build = Threshold
