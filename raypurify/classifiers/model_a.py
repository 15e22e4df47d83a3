"""Model A of Defense-GAN's bench (Samangouei et al. 2018; the paper's Table 8)."""

from __future__ import annotations

from typing import Any

from raypurify.classifiers import ImageConfig, square_params_for
from raypurify.classifiers._two_convolutions import TwoConvolutions


class ModelA(TwoConvolutions):
    """Two convolutions of 64 maps, 5x5, the second of stride 2 and without padding, then a hidden layer of 128.

    Strides and padding are those of Defense-GAN's code. The softmax that the table prints last is left to the loss.
    """

    def __init__(self, config: ImageConfig) -> None:
        super().__init__(config, 64, 5)


def build(**params: Any) -> ModelA:
    """Model A with random weights; ``params`` are :class:`ImageConfig`'s fields."""
    return ModelA(ImageConfig(**params))


params_for = square_params_for
