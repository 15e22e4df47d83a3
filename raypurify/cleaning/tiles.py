"""Images of any size, purified in memory that does not grow with them.

A network's activations take some hundred times the memory of its image. An image of more than ``Tiling.whole`` pixels
is purified in tiles: each tile sees ``overlap`` pixels of its neighbours, and is blended with them in the middle of
what they share, away from its border, where it lacks what lies beyond.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from raypurify.attacks import purify
from raypurify.images import to_uint8_nhwc
from raypurify.models import Precision, autocast
from raypurify.seeds import derive

RAMP = 16
"""Pixels over which two tiles are blended linearly, where neither is exact."""


class NotFiniteError(ValueError):
    """A purifier gave pixels that are NaN or infinite, which no 8 bits can say."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How large images are cut.

    Of the pixels, up to a share of (tile / (tile - overlap))² - 1 is computed twice: 31% here, and 26% at 4000 x 3000.

    CRU-Net with three levels has a reach of 91 pixels, but feels little of what is far. With weights trained on MNIST
    against three attacks, on images like photographs and on noise, what begins 40 pixels away moves a pixel by 0.002 at
    most, and what begins 48 pixels away by 0.0002. With 96 pixels of overlap a tile is used up to 40 pixels from its
    border, there with a weight near zero: tiled and whole images agree to 0.0004 (with 64 pixels, to 0.0012). With
    those of ``weights/mnist``, trained against six, they agree to 0.0013, a third of a step of 8 bits.
    """

    tile: int = 768
    """Pixels, the longest side of a tile. CRU-Net of width 16 takes some 600 bytes a pixel."""
    overlap: int = 96
    """Pixels that neighbours share. A purifier that tells its reach gets no less than that, and no more than twice
    that, from where on tiled and whole images are equal: tiles of the identity do not overlap."""
    whole: int = 1 << 19
    """Pixels (height times width) of the largest image that is purified whole, and of the largest batch of them."""

    def __post_init__(self) -> None:
        for name in ("tile", "whole"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)!r}")
        if not 0 <= 2 * self.overlap <= self.tile:
            raise ValueError(f"overlap must be in 0..{self.tile // 2}, half of tile; got {self.overlap!r}")


class PixelPurifier:
    """A purifier on images of any size, in 8 bits.

    The sides of what the purifier gets are multiples of its ``multiple``: edges are repeated, and cropped again.
    """

    def __init__(
        self,
        purifier: nn.Module,
        *,
        tiling: Tiling | None = None,
        device: str = "cpu",
        precision: Precision = "float32",
    ) -> None:
        """``purifier``: on ``device``, in eval; :mod:`raypurify.purifiers` tells what it may say of tiles and draws."""
        self.purifier, self.tiling, self.device, self.precision = purifier, tiling or Tiling(), device, precision
        self.multiple: int = getattr(purifier, "multiple", 1)
        self.grid: int = getattr(purifier, "grid", self.multiple)
        self.reach: int | None = getattr(purifier, "reach", None)

    def __call__(self, images: NDArray[np.uint8], seeds: Sequence[int]) -> NDArray[np.uint8]:
        """Purify images of one shape, rounded to 8 bits.

        Args:
            images: (N, H, W, C) uint8.
            seeds: one for each image, for a purifier that draws at random; each tile draws from a seed of its own.

        Returns:
            (N, H, W, C) uint8.

        Raises:
            NotFiniteError: the purifier gave NaN or infinity.
            ValueError: another shape or dtype, tiles that are too small for the purifier, or a purifier that changes
                the shape.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(seeds):
            found = f"{images.shape} {images.dtype}, {len(seeds)}"
            raise ValueError(f"expected (N, H, W, C) uint8 and N seeds, got {found}")
        purified = np.empty_like(images)
        pixels = max(1, images.shape[1] * images.shape[2])
        if pixels > self.tiling.whole:
            for image, seed, out in zip(images, seeds, purified, strict=True):
                top = 0
                for strip in self.strips(image, seed):
                    out[top : top + strip.shape[1]] = to_uint8_nhwc(strip[None])[0]
                    top += strip.shape[1]
            return purified
        batch = self.tiling.whole // pixels
        for start in range(0, len(images), batch):
            rows = slice(start, start + batch)
            purified[rows] = to_uint8_nhwc(self._whole(images[rows], seeds[rows]))
        return purified

    def strips(self, image: NDArray[np.uint8], seed: int) -> Iterator[Tensor]:
        """Purify one image in tiles, a row of tiles after the other; what two rows share waits for the second.

        Args:
            image: (H, W, C) uint8.

        Yields:
            (C, rows, W) float32 on the CPU, before rounding: from top to bottom, H rows in all.
        """
        height, width, channels = image.shape
        rows, columns = self._spans(height), self._spans(width)
        waiting = torch.zeros(channels, 0, width)
        for row, (top, bottom) in enumerate(rows):
            strip = torch.zeros(channels, bottom - top, width)
            for column, (left, right) in enumerate(columns):
                tile = self._whole(image[None, top:bottom, left:right], derive([seed], "tile", top, left))[0]
                strip[:, :, left:right] += tile * _weights(columns, column, self.reach)
            strip *= _weights(rows, row, self.reach)[:, None]
            strip[:, : waiting.shape[1]] += waiting
            done = rows[row + 1][0] - top if row + 1 < len(rows) else bottom - top
            yield strip[:, :done]
            waiting = strip[:, done:].clone()

    def purified(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        """(N, C, H, W) float32 on the device -> the same, padded on the way and not cut."""
        height, width = x.shape[2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        with torch.no_grad(), autocast(self.device, self.precision):
            y = purify(self.purifier, x, seeds)
        if y.shape != x.shape:
            raise ValueError(f"{type(self.purifier).__name__} made {tuple(y.shape)} of {tuple(x.shape)}")
        return y[..., :height, :width].float()

    def _whole(self, pixels: NDArray[np.uint8], seeds: Sequence[int]) -> Tensor:
        """(N, H, W, C) uint8 -> (N, C, H, W) float32 on the CPU."""
        x = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).to(self.device).permute(0, 3, 1, 2)
        y = self.purified(x.to(memory_format=torch.channels_last).float().div_(255), seeds).cpu()
        if not y.isfinite().all():
            raise NotFiniteError("its pixels are not finite: NaN or infinity")
        return y

    def _spans(self, side: int) -> list[tuple[int, int]]:
        """Beginnings and ends of tiles along one side: of nearly one length, beginning on the purifier's grid."""
        tile, grid, overlap = self.tiling.tile, self.grid, self.tiling.overlap
        if side <= tile:
            return [(0, side)]
        if self.reach is not None:
            overlap = min(max(overlap, self.reach), 2 * self.reach)
        overlap = math.ceil(overlap / grid) * grid
        longest_step = (tile - overlap) // grid * grid
        if longest_step < max(overlap, 1):
            raise ValueError(
                f"tile must be at least {2 * overlap + grid} for this purifier, whose tiles overlap by {overlap} and "
                f"begin at multiples of {grid}; got {tile}"
            )
        tiles = math.ceil((side - overlap) / longest_step)
        step = max(overlap, math.ceil((side - overlap) / tiles / grid) * grid)
        return [(start, min(start + step + overlap, side)) for start in range(0, side - overlap, step)]


def _weights(spans: Sequence[tuple[int, int]], index: int, reach: int | None) -> Tensor:
    """The weights of a tile's pixels along one side; those of two tiles sum to 1 where they overlap."""
    start, stop = spans[index]
    weights = torch.ones(stop - start)
    if index > 0:
        rise = _rise(spans[index - 1][1] - start, reach)
        weights[: len(rise)] *= rise
    if index + 1 < len(spans):
        rise = _rise(stop - spans[index + 1][0], reach)
        weights[len(weights) - len(rise) :] *= 1 - rise
    return weights


def _rise(overlap: int, reach: int | None) -> Tensor:
    """Weights that rise from 0 to 1 in the middle of an overlap; at once where both tiles are exact there."""
    ramp = 0 if reach is not None and 2 * reach <= overlap else min(RAMP, overlap)
    margin = (overlap - ramp) // 2
    return ((torch.arange(overlap) + 1 - margin) / (ramp + 1)).clamp(0, 1)
