"""EfficientNet-Lite1, for ImageNet's 1,000 classes, with its published weights: the extra ``photos``."""

from __future__ import annotations

from raypurify.classifiers._efficientnet_lite import EfficientNetLite


def build(pretrained: bool = True) -> EfficientNetLite:
    """EfficientNet-Lite1, whose images are squares of 240 pixels.

    Args:
        pretrained: with the published weights; else with random ones.

    Raises:
        ValueError: the extra ``photos`` is not installed.
    """
    return EfficientNetLite(1, pretrained=pretrained, resize=272, crop=240)
