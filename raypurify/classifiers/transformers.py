"""An image classifier of Hugging Face's transformers, by its name on the hub or its folder: the extra
``transformers``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from raypurify.classifiers import Normalize
from raypurify.classifiers._imagenet import with_synsets
from raypurify.classifiers._libraries import unavailable

UNNAMED = re.compile(r"LABEL_\d+")
"""What a class is called that has no name."""

SQUARE_FROM = 384
"""Pixels: from this size on, a recipe with ``crop_pct`` (ConvNeXt's) crops nothing."""


class Transformers(nn.Module):
    """A network of transformers behind the normalisation of its image processor, whose size and crop are its ``view``.

    A processor that squeezes an image into a square is followed as far as a view can: the shorter side is resized to
    the square's, and the centre is cut out.
    """

    def __init__(self, model: str, *, pretrained: bool, classes: int | None) -> None:
        super().__init__()
        try:
            from transformers import AutoConfig, AutoModelForImageClassification, ImageProcessingMixin
        except (ImportError, RuntimeError) as error:
            raise unavailable("transformers", error) from error
        self.pretrained = pretrained
        own = {} if classes is None else {"num_labels": classes}
        try:
            recipe, _ = ImageProcessingMixin.get_image_processor_dict(model)
            if pretrained:
                # No pickle: only weights in safetensors are taken.
                self.network = AutoModelForImageClassification.from_pretrained(model, use_safetensors=True, **own)
            else:
                config = AutoConfig.from_pretrained(model, **own)
                self.network = AutoModelForImageClassification.from_config(config)
        except (OSError, ValueError) as error:
            raise ValueError(f"transformers: {model}: {str(error).strip().partition(chr(10))[0]}") from error
        normalises = recipe.get("do_normalize", True)
        mean, std = (
            recipe[name] if normalises else [plain] * 3 for name, plain in (("image_mean", 0), ("image_std", 1))
        )
        self.normalize = Normalize(mean, std)
        self.view = view_of(recipe)
        names = [self.network.config.id2label[number] for number in range(self.network.config.num_labels)]
        self.class_names = None if all(map(UNNAMED.fullmatch, names)) else with_synsets(names)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) float32 in [0, 1] -> (N, classes) logits."""
        logits: Tensor = self.network(pixel_values=self.normalize(x)).logits
        return logits


def view_of(recipe: Mapping[str, Any]) -> dict[str, int] | None:
    """How an image processor shows images, as ``resize`` and ``crop``; None where it leaves their size alone.

    Args:
        recipe: its ``preprocessor_config.json``.
    """
    if not recipe.get("do_resize", True) or "size" not in recipe:
        return None
    size = recipe["size"]
    side = size if isinstance(size, int) else size.get("shortest_edge") or min(size["height"], size["width"])
    cut = recipe.get("crop_size") if recipe.get("do_center_crop") else None
    if cut is not None:
        return {"resize": side, "crop": cut if isinstance(cut, int) else min(cut["height"], cut["width"])}
    share = recipe.get("crop_pct") if side < SQUARE_FROM else None
    return {"resize": int(side / share) if share else side, "crop": side}


def build(model: str, pretrained: bool = True, classes: int | None = None) -> Transformers:
    """A network of transformers.

    Args:
        model: its name on the hub, such as google/vit-base-patch16-224, or the folder of one.
        pretrained: with its weights, which are downloaded once, in the process that is started; else with random ones,
            to be trained.
        classes: how many it tells apart; by default as many as its configuration says.

    Raises:
        ValueError: the extra is not installed, no such model, or one without weights in safetensors.
    """
    return Transformers(model, pretrained=pretrained, classes=classes)


def params_for(image_shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    """The classes of (H, W, 3) images, for a training."""
    if image_shape[2] != 3:
        raise ValueError(f"expected colour images; got (H, W, C) = {image_shape}")
    return {"classes": classes}
