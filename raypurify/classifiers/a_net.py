"""A-net, a small convolutional classifier (the paper's Table 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from raypurify.classifiers import PIXELS, Normalize, check_channels, square_params_for


@dataclass(frozen=True, kw_only=True)
class ANetConfig:
    """Shape of the images and of the output; the layers are Table 1's."""

    image_size: int = 28
    """Height and width of the images, in pixels."""
    channels: int = 1
    classes: int = 10
    mean: tuple[float, ...] = PIXELS[1][0]
    """Of the pixels, in [0, 1], one a channel."""
    std: tuple[float, ...] = PIXELS[1][1]

    def __post_init__(self) -> None:
        check_channels(self.channels, self.mean, self.std)
        if self.image_size < 2:
            raise ValueError(f"image_size must be at least 2; got {self.image_size!r}")


class ANet(nn.Module):
    """Conv 64 5x5, conv 64 3x3 stride 2, dropout, fully connected.

    Table 1 prints a ReLU after the last layer; on logits it would zero gradients, so the logits are raw. Padding is
    "same", which the table leaves open.
    """

    def __init__(self, config: ANetConfig) -> None:
        super().__init__()
        half = (config.image_size + 1) // 2
        self.normalize = Normalize(config.mean, config.std)
        self.features = nn.Sequential(
            nn.Conv2d(config.channels, 64, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64 * half * half, config.classes))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float32 in [0, 1] -> (N, classes) logits."""
        return self.head(self.features(self.normalize(x)))


def build(**params: Any) -> ANet:
    """A-net with random weights; ``params`` are :class:`ANetConfig`'s fields."""
    return ANet(ANetConfig(**params))


params_for = square_params_for
