"""Model B of Defense-GAN's bench (Samangouei et al. 2018; the paper's Table 8)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from raypurify.classifiers import ImageConfig, Normalize, square_params_for


class ModelB(nn.Module):
    """Three convolutions: 64 maps of 8x8, and 128 of 6x6, of stride 2, and 128 of 5x5; dropout before and after them.

    Strides and padding are those of Defense-GAN's code. Its first dropout keeps a fifth of the pixels, where the table
    prints 0.2; here it drops a fifth. The softmax that the table prints last is left to the loss.
    """

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        side = (config.image_size // 2 - 6) // 2 + 1 - 4
        if side < 1:
            raise ValueError(f"image_size must be at least 28; got {config.image_size!r}")
        self.normalize = Normalize(config.mean, config.std)
        self.layers = nn.Sequential(
            nn.Dropout(0.2),
            nn.Conv2d(config.channels, 64, 8, stride=2, padding=3),
            nn.ReLU(),
            nn.Conv2d(64, 128, 6, stride=2),
            nn.ReLU(),
            nn.Conv2d(128, 128, 5),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(128 * side * side, config.classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float32 in [0, 1] -> (N, classes) logits."""
        return self.layers(self.normalize(x))


def build(**params: Any) -> ModelB:
    """Model B with random weights; ``params`` are :class:`ImageConfig`'s fields."""
    return ModelB(ImageConfig(**params))


params_for = square_params_for
