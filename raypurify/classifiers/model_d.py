"""Model D of Defense-GAN's bench (Samangouei et al. 2018; the paper's Table 8)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from raypurify.classifiers import ImageConfig, Normalize, square_params_for


class ModelD(nn.Module):
    """Two hidden layers of 200, each with dropout, and no convolution.

    The softmax that the table prints last is left to the loss.
    """

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        pixels = config.channels * config.image_size**2
        self.normalize = Normalize(config.mean, config.std)
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(pixels, 200),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(200, 200),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(200, config.classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float32 in [0, 1] -> (N, classes) logits."""
        return self.layers(self.normalize(x))


def build(**params: Any) -> ModelD:
    """Model D with random weights; ``params`` are :class:`ImageConfig`'s fields."""
    return ModelD(ImageConfig(**params))


params_for = square_params_for
