"""Rounding of the pixels to a few bits: with 8, what saving the image to a file does."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn


class Rounding(nn.Module):
    """Rounds each pixel to the nearest of 2^bits levels: (N, C, H, W) in [0, 1] to the same.

    The output carries no gradient: that of rounding is zero everywhere, and would look like a robust defense to an
    attacker.

    Args:
        bits: 1 to 16, bits for each channel of a pixel.

    Raises:
        ValueError: bits is out of range.
    """

    trivial: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    reach: ClassVar[int] = 0

    def __init__(self, *, bits: int = 8) -> None:
        super().__init__()
        if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 16:
            raise ValueError(f"bits must be an integer from 1 to 16, got {bits!r}")
        self.bits = bits

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        highest = (1 << self.bits) - 1
        return (x * highest).round() / highest

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


build = Rounding
