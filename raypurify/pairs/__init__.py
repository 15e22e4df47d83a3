"""Where the pairs that a purifier is trained on come from: one file a source.

A plugin file names ``build``, a callable whose parameters are the source's and that returns a :class:`Pairs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raypurify.attacks import Attack, run_attack
from raypurify.seeds import derive, seed_of
from raypurify.training import Batch


class Pairs(Protocol):
    """Makes the adversarial images of a batch."""

    def __call__(
        self,
        batch: Batch,
        *,
        network: nn.Module,
        classifier: nn.Module,
        attacks: tuple[Attack, ...],
        clean_share: float,
    ) -> Tensor:
        """The adversarial partners of ``batch.x``: (N, C, H, W) in [0, 1], each beside the image it was made of.

        Args:
            batch: clean images. All randomness comes from their seeds, so that a pair does not depend on the batch.
            network: the purifier that is trained; its mode is left as it was found.
            classifier: in eval and frozen.
            attacks: those of the training's config.
            clean_share: share of the images, in [0, 1], that are left as they are.
        """
        ...


def choices(batch: Batch, kinds: int, clean_share: float) -> NDArray[np.int64]:
    """What becomes of each image, by its seed: one of ``kinds``, in equal shares, or -1 for one that is left clean."""
    picks = np.array([seed_of(seed, "mixture") / 2**63 for seed in batch.seeds])
    numbers = (picks - clean_share) / max(1 - clean_share, 1e-9) * kinds
    return np.where(picks < clean_share, -1, numbers).astype(int)


def mixture(batch: Batch, victim: nn.Module, attacks: Sequence[Attack], clean_share: float) -> Tensor:
    """Each image under the attack that its seed picks, or as it is: (N, C, H, W)."""
    chosen = choices(batch, len(attacks), clean_share)
    x_adv = batch.x.clone()
    for index, attack in enumerate(attacks):
        rows = np.flatnonzero(chosen == index)
        if rows.size:
            seeds = derive([batch.seeds[row] for row in rows.tolist()], attack)
            where = torch.from_numpy(rows).to(batch.x.device)
            x_adv[where] = run_attack(attack, victim, batch.x[where], batch.y[where], seeds=seeds).x_adv
    return x_adv
