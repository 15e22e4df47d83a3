"""A classifier of timm, PyTorch Image Models (Wightman 2019), by its name there: the extra ``timm``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raypurify.classifiers import Normalized
from raypurify.classifiers._imagenet import CLASSES, SYNSET, class_names
from raypurify.classifiers._libraries import unavailable


class Timm(Normalized):
    """A network of timm behind the normalisation of its data configuration, whose size and crop are its ``view``."""

    def __init__(self, model: str, *, pretrained: bool, channels: int, classes: int | None) -> None:
        library = _library()
        if not library.is_model(model):
            near = library.list_models(f"*{model[:4]}*")[:5]
            raise ValueError(f"timm: it has no model {model!r}; timm.list_models() lists them, such as {near}")
        own = {} if classes is None else {"num_classes": classes}
        network = library.create_model(model, pretrained=pretrained, in_chans=channels, **own)
        data = library.data.resolve_model_data_config(network)
        super().__init__(network, *(_per_channel(data[name], channels) for name in ("mean", "std")))
        self.pretrained = pretrained
        side = data["input_size"][-1]
        self.view = {"resize": int(side / data["crop_pct"]), "crop": side}
        if pretrained and classes is None:
            self.class_names = names_of(network.num_classes, network.pretrained_cfg.get("label_names"))


def names_of(classes: int, told: Sequence[str] | None) -> Sequence[str] | None:
    """The names of a network's classes: ImageNet's where there are as many, and no other names are told.

    Args:
        classes: how many.
        told: the names that timm's configuration of the network has, if any.
    """
    is_imagenet = classes == CLASSES and (not told or SYNSET.fullmatch(told[0]))
    return class_names() if is_imagenet else told


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _library() -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        raise unavailable("timm", error) from error
    return timm


def build(model: str, pretrained: bool = False, channels: int = 3, classes: int | None = None) -> Timm:
    """A network of timm.

    Args:
        model: its name there, such as resnet18 or vit_tiny_patch16_224.
        pretrained: with the published weights, which timm downloads once, in the process that is started; else with
            random ones, to be trained.
        channels: of the images, 1 or 3.
        classes: how many it tells apart; by default as many as the published weights do.

    Raises:
        ValueError: the extra is not installed, or no such model.
    """
    return Timm(model, pretrained=pretrained, channels=channels, classes=classes)


def params_for(image_shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    """The channels of (H, W, C) images and their classes, for a training."""
    return {"channels": image_shape[2], "classes": classes}
