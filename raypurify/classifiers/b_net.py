"""B-net, a deeper convolutional classifier (the paper's Table 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from raypurify.classifiers import PIXELS, Normalize, check_channels, square_params_for


@dataclass(frozen=True, kw_only=True)
class BNetConfig:
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
        if self.image_size < 4:
            raise ValueError(f"image_size must be at least 4; got {self.image_size!r}")


class BNet(nn.Module):
    """Two pairs of conv 64 3x3, each pair pooled, then two hidden layers of 200 with dropout.

    Table 1 prints a ReLU after the last layer; on logits it would zero gradients, so the logits are raw. Padding is
    "same", which the table leaves open.
    """

    def __init__(self, config: BNetConfig) -> None:
        super().__init__()
        quarter = config.image_size // 4
        self.normalize = Normalize(config.mean, config.std)
        self.features = nn.Sequential(
            nn.Conv2d(config.channels, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * quarter * quarter, 200),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(200, 200),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(200, config.classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float32 in [0, 1] -> (N, classes) logits."""
        return self.head(self.features(self.normalize(x)))


def build(**params: Any) -> BNet:
    """B-net with random weights; ``params`` are :class:`BNetConfig`'s fields."""
    return BNet(BNetConfig(**params))


params_for = square_params_for
