"""Checkpoints that a training has written below ``checkpoints/``, one folder for each of the last epochs."""

from __future__ import annotations

from pathlib import PurePosixPath

import safetensors
import safetensors.torch

from raypurify import storage
from raypurify.storage import checkpoints

UNREADABLE = (FileNotFoundError, ValueError, KeyError, TypeError, safetensors.SafetensorError)


def names(folder: str) -> set[str]:
    """The names of the checkpoints in a folder, whole or not."""
    _, root = storage.filesystem(folder)
    paths = (PurePosixPath(storage.filesystem(url)[1]).relative_to(root).parts for url in storage.list_files(folder))
    return {parts[0] for parts in paths if len(parts) > 1 and parts[0].startswith("checkpoint_")}


def latest(folder: str) -> str | None:
    """The name of the whole checkpoint of the latest epoch, or None where there is none."""
    by_epoch = sorted(names(folder), key=lambda name: epoch(storage.join(folder, name)), reverse=True)
    return next((name for name in by_epoch if _is_whole(storage.join(folder, name))), None)


def epoch(checkpoint: str) -> int:
    """After which a checkpoint was written, counted from 1; 0 for one that does not tell."""
    try:
        return int(storage.read_json(storage.join(checkpoint, "model", "metrics.json"))["epoch"])
    except UNREADABLE:
        return 0


def best(checkpoint: str) -> str | None:
    """The folder in a checkpoint that holds the best epoch's model; None where no score tells which epoch that is.

    Raises:
        One of UNREADABLE.
    """
    metrics = storage.read_json(storage.join(checkpoint, "model", "metrics.json"))
    if metrics.get("best") is None:
        return None
    return "model" if metrics["best"] == metrics["epoch"] else "best"


def _is_whole(checkpoint: str) -> bool:
    try:
        for model in {"model", best(checkpoint) or "model"}:
            checkpoints.load(storage.join(checkpoint, model))
        safetensors.torch.load(storage.read_bytes(storage.join(checkpoint, "optimizer.safetensors")))
        for name in ("metrics.parquet", "rejects.parquet"):
            storage.read_table(storage.join(checkpoint, name))
    except UNREADABLE:
        return False
    return epoch(checkpoint) > 0
