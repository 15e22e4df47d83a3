"""What the user has made in this process, networks, attacks and images, where a job wants names and URLs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from raypurify import models
from raypurify.evaluation.grid import attack_text
from raypurify.evaluation.tensors import write_images

DATASETS = ("data", "input")
"""Flags that name a dataset."""


def named(value: Any) -> Any:
    """The value of a flag as YAML would have it: paths as text, NumPy's numbers as Python's, an attack as its name and
    parameters, and a name for each network: see :func:`raypurify.models.give_name`.

    Raises:
        ValueError: an attack of a class that workers cannot import.
    """
    if isinstance(value, list | tuple):
        return [named(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, nn.Module):
        return models.give_name(value)
    is_attack = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return attack_text(value) if is_attack else value


def modules() -> set[str]:
    """The modules that define these networks: see :func:`raypurify.models.modules_given`."""
    return models.modules_given()


def written(flags: Mapping[str, Any], folder: str, *, split: str, local: bool) -> dict[str, Any]:
    """The flags, with the images and labels that were given for a dataset written to a folder.

    Args:
        flags: by name.
        folder: is made, where it is needed.
        split: what these images are of a dataset, where no flag tells it.
        local: whether this process does the work.

    Raises:
        ValueError: it does not, and actors of a cluster would not find the folder; or what is given is no dataset.
    """
    result = dict(flags)
    for name in DATASETS:
        given = flags.get(name, "")
        if not isinstance(given, str | os.PathLike):
            if not isinstance(given, tuple | list) or len(given) != 2:
                raise ValueError(f"{name}: expected a name, a path, a URL or (x, y); got a {type(given).__name__}")
            if not local:
                raise ValueError(f"{name}: images in memory are for engine='local'; a cluster reads a dataset")
            os.mkdir(folder)
            write_images(f"{folder}/{flags.get('split', split)}-images.parquet", *given)
            result[name] = folder
    return result
