"""Checkpoints: folders that hold a network's weights, how to build it, and how good it was. No pickle is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from torch import Tensor

from raypurify import storage


def save(
    url: str, config: Mapping[str, Any], state: Mapping[str, Tensor], metrics: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint folder: ``config.json``, ``model.safetensors`` and, if given, ``metrics.json``.

    ``config.json`` is written last: a folder that has one is whole.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    storage.write_bytes(storage.join(url, "model.safetensors"), safetensors.torch.save(tensors))
    if metrics is not None:
        storage.write_json(storage.join(url, "metrics.json"), dict(metrics))
    storage.write_json(storage.join(url, "config.json"), dict(config))


def load(url: str) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Read a checkpoint folder: its config, its tensors on the CPU, and the SHA-256 of its weights.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: not a checkpoint of this format.
    """
    if not storage.exists(storage.join(url, "config.json")):
        place = storage.absolute(url)
        raise FileNotFoundError(f"there is no checkpoint at {place}: expected config.json and model.safetensors in it")
    config = storage.read_json(storage.join(url, "config.json"))
    data = storage.read_bytes(storage.join(url, "model.safetensors"))
    try:
        state = safetensors.torch.load(data)
    except Exception as error:
        raise ValueError(f"{storage.join(url, 'model.safetensors')} is not a safetensors file: {error}") from error
    return config, state, hashlib.sha256(data).hexdigest()
