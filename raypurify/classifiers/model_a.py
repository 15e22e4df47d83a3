"""Model A of Defense-GAN's bench (Samangouei et al. 2018; the paper's Table 8)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from raypurify.classifiers import ImageConfig, Normalize, square_params_for


class ModelA(nn.Module):
    """Two convolutions of 64 maps, 5x5, the second of stride 2 and without padding, then a hidden layer of 128.

    Strides and padding are those of Defense-GAN's code. The softmax that the table prints last is left to the loss.
    """

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        side = (config.image_size - 5) // 2 + 1
        if side < 1:
            raise ValueError(f"image_size must be at least 5; got {config.image_size!r}")
        self.normalize = Normalize(config.mean, config.std)
        self.layers = nn.Sequential(
            nn.Conv2d(config.channels, 64, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 5, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(64 * side * side, 128),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(128, config.classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float32 in [0, 1] -> (N, classes) logits."""
        return self.layers(self.normalize(x))


def build(**params: Any) -> ModelA:
    """Model A with random weights; ``params`` are :class:`ImageConfig`'s fields."""
    return ModelA(ImageConfig(**params))


params_for = square_params_for
