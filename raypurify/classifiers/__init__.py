"""Classifiers map images (N, C, H, W) float32 in [0, 1] to logits (N, K): one file a network.

A plugin file names a callable ``build(**params) -> nn.Module`` and, so that a training can shape the network to its
data, ``params_for(image_shape, classes) -> dict``. A network normalises its input inside: attacks and purifiers work on
pixels. A module may also say:

- ``pretrained = True``: it brings its weights, so that its name stands for a trained classifier.
- ``view``: how the images were shown that it was trained on, ``{"resize": 256, "crop": 224}`` or one of the two, as
  :class:`raypurify.data.View` has them. Jobs show it images so, where no flag says otherwise.

A network that brings its weights may also have ``class_names``, a name for each class, or several with commas between.
Data whose classes have names are matched with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Pixels in [0, 1] to zero mean and unit variance, channel by channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.mean.shape[1]:
            # One channel would be taken for each of several.
            own = self.mean.shape[1]
            raise RuntimeError(f"its mean and std are those of {own} channel(s), the images have {x.shape[1]}")
        return (x - self.mean) / self.std


class Normalized(nn.Module):
    """A network that does not normalise inside, behind :class:`Normalize`."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        check_channels(len(mean), mean, std)
        self.normalize, self.network = Normalize(mean, std), network
        for name in ("view", "class_names"):
            if (value := getattr(network, name, None)) is not None:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float32 in [0, 1] -> (N, K) logits."""
        logits: Tensor = self.network(self.normalize(x))
        return logits


PIXELS = {1: ((0.1307,), (0.3081,)), 3: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))}
"""Mean and standard deviation of the pixels of MNIST (one channel) and CIFAR-10 (three), in [0, 1]."""


def params_for(image_shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    """What a classifier of (H, W, C) images needs to know of them: channels, classes, mean, std."""
    channels = image_shape[2]
    if channels not in PIXELS:
        raise ValueError(f"expected images of 1 or 3 channels; got (H, W, C) = {image_shape}")
    mean, std = PIXELS[channels]
    return {"channels": channels, "classes": classes, "mean": mean, "std": std}


def square_params_for(image_shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    """As :func:`params_for`, with ``image_size``, for a network with a fully connected layer over the image."""
    height, width, _ = image_shape
    if height != width:
        raise ValueError(f"expected square images; got (H, W, C) = {image_shape}")
    return {"image_size": height, **params_for(image_shape, classes)}


def check_channels(channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise ValueError unless there is one mean and one positive standard deviation for each channel."""
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ValueError(f"expected {channels} means and positive stds, one a channel; got mean={mean!r}, std={std!r}")


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """What a network whose layers are fixed has to know of its images."""

    image_size: int = 28
    """Height and width, in pixels."""
    channels: int = 1
    classes: int = 10
    mean: tuple[float, ...] = PIXELS[1][0]
    """Mean of the pixels of each channel, in [0, 1]."""
    std: tuple[float, ...] = PIXELS[1][1]

    def __post_init__(self) -> None:
        check_channels(self.channels, self.mean, self.std)
        if self.image_size < 4:
            raise ValueError(f"image_size must be at least 4; got {self.image_size!r}")
