"""Model C of Defense-GAN's bench (Samangouei et al. 2018; the paper's Table 8)."""

from __future__ import annotations

from typing import Any

from raypurify.classifiers import ImageConfig, square_params_for
from raypurify.classifiers._two_convolutions import TwoConvolutions


class ModelC(TwoConvolutions):
    """A convolution of 128 maps, 3x3, one of 64, 5x5 and stride 2, without padding, then a hidden layer of 128.

    The table prints 3x3 for the second; 5x5, strides and padding are those of Defense-GAN's code. The softmax that the
    table prints last is left to the loss.
    """

    def __init__(self, config: ImageConfig) -> None:
        super().__init__(config, 128, 3)


def build(**params: Any) -> ModelC:
    """Model C with random weights; ``params`` are :class:`ImageConfig`'s fields."""
    return ModelC(ImageConfig(**params))


params_for = square_params_for
