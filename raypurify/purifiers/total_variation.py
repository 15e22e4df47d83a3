"""Total-variation denoising (Rudin et al. 1992), by Chambolle's projection: a trivial purifier."""

from __future__ import annotations

import numpy as np
import torch
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor, nn


class TotalVariation(nn.Module):
    """The image that is near and has little total variation, all channels together; each image by itself."""

    differentiable = False
    trivial = True

    def __init__(self, weight: float, max_iterations: int) -> None:
        super().__init__()
        if weight <= 0:
            raise ValueError(f"weight must be above 0; got {weight!r}")
        if max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1; got {max_iterations!r}")
        self.weight, self.max_iterations = weight, max_iterations

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same shape and range."""
        images = x.detach().cpu().numpy()
        smooth = [
            denoise_tv_chambolle(image, weight=self.weight, max_num_iter=self.max_iterations, channel_axis=0)
            for image in images
        ]
        return torch.from_numpy(np.stack(smooth) if smooth else images).to(x).clamp(0, 1)


def build(weight: float = 0.05, max_iterations: int = 50) -> TotalVariation:
    """Total-variation denoising.

    Args:
        weight: of the total variation; with more the image is smoother.
        max_iterations: of the projection, which ends before where an image hardly changes.
    """
    return TotalVariation(weight, max_iterations)
