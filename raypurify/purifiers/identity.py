"""The identity: no defense, the floor that any purifier is measured from."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class Identity(nn.Module):
    """Returns its input: (N, C, H, W) in [0, 1] to the same."""

    trivial: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    reach: ClassVar[int] = 0

    def forward(self, x: Tensor) -> Tensor:
        return x


build = Identity
