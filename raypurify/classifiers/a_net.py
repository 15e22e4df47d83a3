"""A-net, a small convolutional classifier (the paper's Table 1)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from raypurify.classifiers import ImageConfig, Normalize, square_params_for


class ANet(nn.Module):
    """Conv 64 5x5, conv 64 3x3 stride 2, dropout, fully connected.

    Table 1 prints a ReLU after the last layer; on logits it would zero gradients, so the logits are raw. Padding is
    "same", which the table leaves open.
    """

    def __init__(self, config: ImageConfig) -> None:
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
    """A-net with random weights; ``params`` are :class:`ImageConfig`'s fields."""
    return ANet(ImageConfig(**params))


params_for = square_params_for
