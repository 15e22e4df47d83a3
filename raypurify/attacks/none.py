"""No attack: the image as it is. A row of a table to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from raypurify.attacks import Attacked, counted


@dataclass(frozen=True, kw_only=True)
class NoAttack:
    """Leaves every image as it is."""

    norm = None
    radius = None

    def __call__(
        self, victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Sequence[int], target: Tensor | None = None
    ) -> Attacked:
        """See :class:`raypurify.attacks.Attack`."""
        return counted(x.clone(), steps=0, queries=0)


build = NoAttack
