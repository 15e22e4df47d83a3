"""JPEG compression, after Dziugaite et al. 2016, "A study of the effect of JPG compression on adversarial images"."""

from __future__ import annotations

import io
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn


class Jpeg(nn.Module):
    """Encodes each image as a JPEG file and decodes it: (N, C, H, W) in [0, 1] to the same; C is 1 or 3.

    Runs on the CPU, through Pillow with its default chroma subsampling. The output carries no gradient.

    Args:
        quality: 1 to 100, the JPEG quality.

    Raises:
        ValueError: quality is out of range; in ``forward``, C is neither 1 nor 3.
    """

    trivial: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    # Chroma is kept for each second pixel in blocks of 8, and smoothed into the next block as it is spread again.
    grid: ClassVar[int] = 16
    reach: ClassVar[int] = 16

    def __init__(self, *, quality: int = 75) -> None:
        super().__init__()
        if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
            raise ValueError(f"quality must be an integer from 1 to 100, got {quality!r}")
        self.quality = quality

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        if channels not in (1, 3):
            raise ValueError(
                f"JPEG takes images of 1 or 3 channels, got {channels} in a batch of shape {tuple(x.shape)}"
            )
        pixels = (x * 255).round().clamp(0, 255).to("cpu", torch.uint8)
        images = pixels[:, 0] if channels == 1 else pixels.permute(0, 2, 3, 1)
        decoded = np.empty(images.shape, dtype=np.uint8)
        for index, image in enumerate(images.numpy()):
            decoded[index] = self._compress(image)
        restored = torch.from_numpy(decoded).to(x.device, x.dtype) / 255
        return restored.unsqueeze(1) if channels == 1 else restored.permute(0, 3, 1, 2).contiguous()

    def _compress(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="JPEG", quality=self.quality)
        with Image.open(file) as decoded:
            return np.asarray(decoded)

    def extra_repr(self) -> str:
        return f"quality={self.quality}"


build = Jpeg
