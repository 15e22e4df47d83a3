"""How images of a dataset are shown to networks: resized, then cropped, as torchvision's transforms do it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Shape = tuple[int, int, int]
"""(H, W, C) of an image."""


@dataclass(frozen=True, kw_only=True)
class View:
    """How images are shown. Where neither is given: as the classifier's are that it was trained on, if it says so."""

    resize: int | None = None
    """Resize each image: its shorter side to so many pixels, the longer one in proportion (bicubic, antialiased)."""
    crop: int | None = None
    """Cut a square of so many pixels a side out of each image: the centre, or in training a place at random."""
    as_stored: bool = False
    """Show images as they are stored, even to a classifier that was trained with a view of its own."""

    def __post_init__(self) -> None:
        if self.as_stored and self.given:
            raise ValueError(f"as_stored: with {self.flags} images are not as they are stored; leave one out")
        for name, side in self.given.items():
            if side < 1:
                raise ValueError(f"{name} must be at least 1; got {side!r}")
        if self.resize is not None and self.crop is not None and self.crop > self.resize:
            raise ValueError(f"crop must be at most resize={self.resize}; got {self.crop!r}")

    @property
    def given(self) -> dict[str, int]:
        """What is given, by its name: this view's part of an identity."""
        return {name: getattr(self, name) for name in ("resize", "crop") if getattr(self, name) is not None}

    @property
    def flags(self) -> str:
        """The flags that give it."""
        return " ".join(f"--{name} {side}" for name, side in self.given.items())

    @property
    def told(self) -> str:
        """In words."""
        return ", ".join(f"{name} {side}" for name, side in self.given.items())

    def shape(self, stored: Shape) -> Shape:
        """The shape of an image as it is shown.

        Raises:
            ValueError: the image is smaller than the crop.
        """
        height, width = self._resized(*stored[:2])
        if self.crop is None:
            return height, width, stored[2]
        if min(height, width) < self.crop:
            raise ValueError(
                f"{width}x{height} pixels are too few for --crop {self.crop}; give --resize {self.crop} too"
            )
        return self.crop, self.crop, stored[2]

    def has_shown(self, stored: Shape) -> bool:
        """Whether images of a shape (H, W, C) may have been shown so before they were stored: attacked ones, say."""
        return stored[:2] == ((self.crop, self.crop) if self.crop is not None else self.shape(stored)[:2])

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.resize is None:
            return height, width
        longer = int(self.resize * max(height, width) / min(height, width))
        return (self.resize, longer) if height <= width else (longer, self.resize)

    def show(self, pixels: NDArray[np.uint8], draw: str | None = None) -> NDArray[np.uint8]:
        """An image as it is shown.

        Args:
            pixels: (H, W, C) uint8, C 1 or 3.
            draw: a text from whose hash the place of the crop follows; None: the centre.

        Raises:
            ValueError: the image is smaller than the crop.
        """
        shown = self.shape((*pixels.shape[:2], pixels.shape[2]))
        resized = self._resized(*pixels.shape[:2])
        if resized != pixels.shape[:2]:
            image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
            pixels = np.asarray(image.resize(resized[::-1], Image.Resampling.BICUBIC)).reshape(*resized, -1)
        if pixels.shape == shown:
            return pixels
        top, left = self._corner(pixels.shape[0] - shown[0], pixels.shape[1] - shown[1], draw)
        # A copy: the whole image need not be kept.
        return pixels[top : top + shown[0], left : left + shown[1]].copy()

    def _corner(self, down: int, across: int, draw: str | None) -> tuple[int, int]:
        """The crop's upper left corner, at most so many pixels ``down`` and ``across``."""
        if draw is None:
            return round(down / 2), round(across / 2)
        drawn = hashlib.blake2b(draw.encode(), digest_size=16).digest()
        return int.from_bytes(drawn[:8], "big") % (down + 1), int.from_bytes(drawn[8:], "big") % (across + 1)


AS_STORED = View()
"""The view of images as they are stored."""
