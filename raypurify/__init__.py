"""raypurify: train, attack and run image purifiers, on a laptop or a Ray cluster.

The names below are loaded when they are first asked for: importing the package is fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from raypurify.command.library import attack, certify, clean, evaluate, train
    from raypurify.evaluation.tensors import accuracy_under, load_images
    from raypurify.models import load_network as load
    from raypurify.report.notebook import show

__all__ = [
    "__version__",
    "accuracy_under",
    "attack",
    "certify",
    "clean",
    "evaluate",
    "load",
    "load_images",
    "show",
    "train",
]

_PLACES = {
    "accuracy_under": ("evaluation.tensors", "accuracy_under"),
    "load_images": ("evaluation.tensors", "load_images"),
    "load": ("models", "load_network"),
    "show": ("report.notebook", "show"),
    **{verb: ("command.library", verb) for verb in ("attack", "certify", "clean", "evaluate", "train")},
}
"""The module that has each lazy name, and its name there."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, own = _PLACES[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), own)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
