"""The 3×3 median filter."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The smaller of the two goes first. This network leaves the median of nine in the middle (Smith 1996, "Implementing
# median filters in XC4000E FPGAs"); torch.median over unfolded windows takes some eight times as long on CPU.
_EXCHANGES = (
    *((1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8)),
    *((0, 3), (5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2)),
)


class MedianFilter(nn.Module):
    """Median of the 3×3 pixels around each, borders replicated: (N, C, H, W) in [0, 1] to the same.

    Its gradient goes to the pixel that is the median, and is shared among equal ones.
    """

    trivial: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    reach: ClassVar[int] = 1

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        window = [padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
        for i, j in _EXCHANGES:
            window[i], window[j] = torch.minimum(window[i], window[j]), torch.maximum(window[i], window[j])
        return window[4]


build = MedianFilter
