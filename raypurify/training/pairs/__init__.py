"""Where the pairs that a purifier is trained on come from: one file a source.

A plugin file names ``build``, a callable whose parameters are the source's and that returns a :class:`Pairs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raypurify.attacks import Attack, Graphs, run_attack
from raypurify.seeds import derive, seed_of
from raypurify.training.batches import Batch


@dataclass(frozen=True, kw_only=True)
class PairSetup:
    """What a source may make adversarial images with."""

    network: nn.Module
    """The purifier or classifier that is trained; a source leaves its mode as it was found."""
    classifier: nn.Module | None
    """The classifier that a purifier is trained for, in eval and frozen; None where ``network`` is a classifier."""
    attacks: tuple[Attack, ...]
    """The attacks that the training's config names."""
    clean_share: float
    """Share of the images, in [0, 1], that are left as they are."""
    progress: float = 1.0
    """Share of the training's steps, in [0, 1], that lie behind; 1 where the network is scored."""
    draw: int = 0
    """Number of a draw of the same images: what becomes of an image stays, and what is drawn at random is another."""
    augment: Callable[[Tensor], Tensor] = lambda x: x
    """The random change that the batch's images have been through, for adversarial images that were made before."""
    graphs: Graphs | None = None
    """CUDA graphs of the networks, which the training keeps; None: there are none."""

    @property
    def of_draw(self) -> tuple[int, ...]:
        """What stands behind the names of random draws: nothing in the first draw."""
        return (self.draw,) if self.draw else ()


class Pairs(Protocol):
    """Makes the adversarial images of a batch.

    A source that has images beforehand may name ``has(names) -> (N,) bool``: which of the clean images, by their ids,
    it can make a partner of. The training is on these. It may also name ``view() -> raypurify.data.View``, how these
    clean images were shown, so that crops stay where they were, and ``holds(data) -> bool``, whether a dataset is the
    source's own.
    """

    def __call__(self, batch: Batch, setup: PairSetup) -> Tensor:
        """The adversarial partners of ``batch.x``: (N, C, H, W), each beside the image it was made of.

        They are in [0, 1], but those of noise that is not clipped.

        Args:
            batch: clean images. All randomness comes from their seeds, so that a pair does not depend on the batch.
            setup: networks, attacks, and the share of clean images.
        """
        ...


def choices(batch: Batch, kinds: int | NDArray[np.float64], clean_share: float) -> NDArray[np.int64]:
    """What becomes of each image, by its seed: one of some kinds, or -1 for one that is left clean.

    Args:
        batch: (N, ...) images.
        kinds: how many kinds there are, in equal shares; or (N, K) chances, 0 for a kind that an image cannot be.
        clean_share: share of the images, in [0, 1], that are left clean.
    """
    chances = np.ones((len(batch.seeds), kinds)) if isinstance(kinds, int) else kinds
    picks = np.array([seed_of(seed, "mixture") / 2**63 for seed in batch.seeds])
    within = (picks - clean_share) / max(1 - clean_share, 1e-9)
    bounds = np.cumsum(chances, axis=1)
    numbers = (bounds <= within[:, None] * bounds[:, -1:]).sum(axis=1)
    return np.where(picks < clean_share, -1, numbers)


def mixture(batch: Batch, victim: nn.Module, setup: PairSetup) -> Tensor:
    """Each image under the attack on ``victim`` that its seed picks, or as it is: (N, C, H, W)."""
    chosen = choices(batch, len(setup.attacks), setup.clean_share)
    x_adv = batch.x.clone()
    victim = victim if setup.graphs is None else setup.graphs.of(victim)
    for index, attack in enumerate(setup.attacks):
        rows = np.flatnonzero(chosen == index)
        if rows.size:
            seeds = derive([batch.seeds[row] for row in rows.tolist()], attack, *setup.of_draw)
            where = torch.from_numpy(rows).to(batch.x.device)
            x_adv[where] = run_attack(attack, victim, batch.x[where], batch.y[where], seeds=seeds).x_adv
    return x_adv
