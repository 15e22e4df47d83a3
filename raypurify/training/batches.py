"""Batches of images in plain torch: on the device, changed at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Augmentation = Literal["none", "affine", "flip_crop"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """x: (N, C, H, W) float32 in [0, 1]; y: (N,) int64; seeds: one for each image, of this run and epoch; ids: the
    images' own, where the batch comes from a training's data.
    """

    x: Tensor
    y: Tensor
    seeds: Sequence[int]
    ids: Sequence[str] = ()

    def taken(self, rows: Sequence[int]) -> Batch:
        """Some of the images."""
        x = self.x[rows].contiguous(memory_format=torch.channels_last)
        ids = [self.ids[row] for row in rows] if self.ids else ()
        return Batch(x=x, y=self.y[rows], seeds=[self.seeds[row] for row in rows], ids=ids)


def batch_of(
    images: np.ndarray, labels: np.ndarray, seeds: Sequence[int], device: str, ids: Sequence[str] = ()
) -> Batch:
    """A batch from (N, H, W, C) uint8 images: on the device, in channels-last memory, which convolutions gain from."""
    x, y = (torch.from_numpy(np.require(values, requirements="W")).to(device) for values in (images, labels))
    x = x.permute(0, 3, 1, 2).to(memory_format=torch.channels_last).float().div_(255)
    return Batch(x=x, y=y, seeds=seeds, ids=ids)


def augment(x: Tensor, seeds: Sequence[int], augmentation: Augmentation) -> Tensor:
    """Change each image at random by its own seed.

    ``affine``: turned by up to 12 degrees, scaled by 0.88 to 1.12, shifted by up to 7%, sheared by up to 0.12.
    ``flip_crop``: mirrored every second time, shifted by up to an eighth of its side, the edges reflected.
    """
    if augmentation == "none":
        return x
    draws = np.stack([np.random.default_rng(seed).random(6) for seed in seeds])
    low_high = torch.from_numpy(draws).to(x) * 2 - 1
    if augmentation == "affine":
        return _affine(x, low_high)
    if augmentation == "flip_crop":
        return _flip_crop(x, low_high)
    raise ValueError(f"augmentation: expected none, affine or flip_crop; got {augmentation!r}")


def _affine(x: Tensor, draws: Tensor) -> Tensor:
    angle, scale, shear = draws[:, 0] * math.radians(12), 1 + 0.12 * draws[:, 1], 0.12 * draws[:, 2]
    matrix = torch.zeros(len(x), 2, 3, dtype=x.dtype, device=x.device)
    matrix[:, 0, 0], matrix[:, 0, 1] = torch.cos(angle) * scale, -torch.sin(angle) * scale + shear
    matrix[:, 1, 0], matrix[:, 1, 1] = torch.sin(angle) * scale, torch.cos(angle) * scale
    matrix[:, :, 2] = 0.14 * draws[:, 3:5]
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _flip_crop(x: Tensor, draws: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    pad_y, pad_x = height // 8, width // 8
    padded = F.pad(x, (pad_x, pad_x, pad_y, pad_y), mode="reflect")
    top = ((draws[:, 0] + 1) / 2 * (2 * pad_y + 1)).long().clamp(max=2 * pad_y)
    left = ((draws[:, 1] + 1) / 2 * (2 * pad_x + 1)).long().clamp(max=2 * pad_x)
    rows = top[:, None] + torch.arange(height, device=x.device)
    columns = left[:, None] + torch.arange(width, device=x.device)
    columns = torch.where(draws[:, 2:3] > 0, columns.flip(1), columns)
    images = torch.arange(len(x), device=x.device)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)
