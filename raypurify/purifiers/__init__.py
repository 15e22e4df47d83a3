"""Purifiers map images (N, C, H, W) float32 in [0, 1] to images of the same shape and range: one file a purifier.

A plugin file names a callable ``build(**params) -> nn.Module``, and holds the whole network. Where it learns, the
module has ``training_loss(x_adv, x) -> scalar``, or the file an ``objective`` (see :mod:`raypurify.objectives`); and
the file ``params_for(image_shape, classes) -> dict``, by which a training shapes the network to its data. What an
attacker or a reader has to know, the module says:

- ``differentiable = False``: its gradient is zero or absent; the attack goes around it.
- ``random = True``: it draws at random; ``forward(x, seeds)`` takes one seed for each image.
- ``trivial = True``: it learned nothing; what a learned one must beat.
- ``detect(x) -> (N,) bool``: which images it takes for attacked; ``detect(x, seeds)`` where it draws at random.
- ``unclipped(x)``: its output before a last clip to [0, 1], which lets no gradient pass outside.

And, for images that are purified in tiles:

- ``multiple``: the sides of what it takes are multiples of it; absent: 1.
- ``grid``: a tile may begin at multiples of it; absent: of ``multiple``.
- ``reach``: pixels. Nothing further away changes a pixel of its output; absent: unknown.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def purify(purifier: nn.Module, x: Tensor, seeds: Sequence[int]) -> Tensor:
    """The purified images; ``seeds``, one for each, are for a purifier that draws at random."""
    purified: Tensor = purifier(x, seeds) if getattr(purifier, "random", False) else purifier(x)
    return purified


def detect(purifier: nn.Module, x: Tensor, seeds: Sequence[int]) -> Tensor | None:
    """Which of the images the purifier takes for attacked: (N,) bool; None for a purifier that detects nothing."""
    detector = getattr(purifier, "detect", None)
    if detector is None:
        return None
    detected: Tensor = detector(x, seeds) if getattr(purifier, "random", False) else detector(x)
    return detected
