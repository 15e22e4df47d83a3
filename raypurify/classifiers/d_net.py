"""D-net, a DenseNet (Huang et al. 2016) sized for 32x32 images: the paper's classifier for CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raypurify.classifiers import PIXELS, Normalize, check_channels
from raypurify.classifiers import params_for as params_for


@dataclass(frozen=True, kw_only=True)
class DNetConfig:
    """A DenseNet-BC: bottlenecks of four growths, transitions that halve the maps."""

    channels: int = 3
    classes: int = 10
    growth: int = 16
    """Maps that each layer adds."""
    layers: tuple[int, ...] = (6, 8, 8)
    """Layers in each dense block; the blocks work at 1/2, 1/4, 1/8 ... of the image's size."""
    mean: tuple[float, ...] = PIXELS[3][0]
    """Mean of the pixels of each channel, in [0, 1]."""
    std: tuple[float, ...] = PIXELS[3][1]

    def __post_init__(self) -> None:
        check_channels(self.channels, self.mean, self.std)
        if self.growth < 1 or not self.layers or min(self.layers) < 1:
            raise ValueError(f"growth and every layer count must be positive; got {self.growth!r}, {self.layers!r}")


class DenseLayer(nn.Module):
    """BN-ReLU-conv1x1-BN-ReLU-conv3x3, whose output is appended to its input."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(h)))], dim=1)


class DNet(nn.Module):
    """A stem at the image's size, pooled, then dense blocks with halving transitions between them."""

    def __init__(self, config: DNetConfig) -> None:
        super().__init__()
        self.normalize = Normalize(config.mean, config.std)
        width = 2 * config.growth
        stages: list[nn.Module] = [nn.Conv2d(config.channels, width, 3, padding=1, bias=False), nn.AvgPool2d(2)]
        for block, depth in enumerate(config.layers):
            for _ in range(depth):
                stages.append(DenseLayer(width, config.growth))
                width += config.growth
            stages += [nn.BatchNorm2d(width), nn.ReLU()]
            if block + 1 < len(config.layers):
                stages += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
                width //= 2
        self.features = nn.Sequential(*stages)
        self.head = nn.Linear(width, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float32 in [0, 1] -> (N, classes) logits."""
        return self.head(self.features(self.normalize(x)).mean(dim=(2, 3)))


def build(**params: Any) -> DNet:
    """D-net with random weights; ``params`` are :class:`DNetConfig`'s fields."""
    return DNet(DNetConfig(**params))
