"""Model C of Defense-GAN's bench (Samangouei et al. 2018; the paper's Table 8)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from raypurify.classifiers import ImageConfig, Normalize, square_params_for


class ModelC(nn.Module):
    """A convolution of 128 maps, 3x3, one of 64, 5x5 and stride 2, without padding, then a hidden layer of 128.

    The table prints 3x3 for the second; 5x5, strides and padding are those of Defense-GAN's code. The softmax that the
    table prints last is left to the loss.
    """

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        side = (config.image_size - 5) // 2 + 1
        if side < 1:
            raise ValueError(f"image_size must be at least 5; got {config.image_size!r}")
        self.normalize = Normalize(config.mean, config.std)
        self.layers = nn.Sequential(
            nn.Conv2d(config.channels, 128, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(128, 64, 5, stride=2),
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


def build(**params: Any) -> ModelC:
    """Model C with random weights; ``params`` are :class:`ImageConfig`'s fields."""
    return ModelC(ImageConfig(**params))


params_for = square_params_for
