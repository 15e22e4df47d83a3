"""B-net, a deeper convolutional classifier (the paper's Table 1)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from raypurify.classifiers import ImageConfig, Normalize, square_params_for


class BNet(nn.Module):
    """Two pairs of conv 64 3x3, each pair pooled, then two hidden layers of 200 with dropout.

    Table 1 prints a ReLU after the last layer; on logits it would zero gradients, so the logits are raw. Padding is
    "same", which the table leaves open.
    """

    def __init__(self, config: ImageConfig) -> None:
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
    """B-net with random weights; ``params`` are :class:`ImageConfig`'s fields."""
    return BNet(ImageConfig(**params))


params_for = square_params_for
