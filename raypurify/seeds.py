"""Seeds that belong to an image: the same wherever, whenever and in whatever batch it is attacked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def seed_of(*parts: object) -> int:
    """A 63-bit seed from the run's seed and the names of what is drawn, by blake2b.

    The order used for images is (run seed, attack, id, restart, draw), the attack as
    :func:`raypurify.plugins.resolved` writes it.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def derive(seeds: Sequence[int], *parts: object) -> list[int]:
    """New seeds for another draw of the same images."""
    return [seed_of(seed, *parts) for seed in seeds]


def draw(seeds: Sequence[int], like: Tensor, sample: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
    """Draw one random tensor for each image of a batch, each from its own generator.

    Drawn on the CPU, so that a GPU gives the same images.

    Args:
        seeds: one for each image.
        like: (N, C, H, W); gives shape, dtype and device.
        sample: fills an empty (C, H, W) tensor in place from a generator and returns it.
    """
    import torch  # only where something is drawn: readers of images have seeds and no torch

    generator = torch.Generator()
    noise = torch.empty(like.shape, dtype=like.dtype)
    for row, seed in zip(noise, seeds, strict=True):
        sample(row, generator.manual_seed(seed))
    return noise.to(like.device)


def uniform(seeds: Sequence[int], like: Tensor, low: float, high: float) -> Tensor:
    """Uniform noise in [low, high), one generator for each image; shaped as ``like``."""
    return draw(seeds, like, lambda row, generator: row.uniform_(low, high, generator=generator))


def normal(seeds: Sequence[int], like: Tensor) -> Tensor:
    """Standard normal noise, one generator for each image; shaped as ``like``."""
    return draw(seeds, like, lambda row, generator: row.normal_(generator=generator))
