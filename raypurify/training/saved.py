"""Checkpoints that a training has written below ``checkpoints/``, one folder each: the last two."""

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
    """The name of the latest whole checkpoint, or None where there is none."""
    latest_first = sorted(names(folder), key=lambda name: progress(storage.join(folder, name)), reverse=True)
    return next((name for name in latest_first if _is_whole(storage.join(folder, name))), None)


def progress(checkpoint: str) -> tuple[int, int]:
    """How many epochs were done when a checkpoint was written, and steps of the next; (0, 0) for one that does not
    tell.
    """
    try:
        metrics = storage.read_json(storage.join(checkpoint, "model", "metrics.json"))
        return int(metrics["epoch"]), int(metrics.get("steps", 0))
    except UNREADABLE:
        return 0, 0


def best(checkpoint: str) -> str | None:
    """The folder in a checkpoint that holds the best epoch's model; None where no score tells which epoch that is.

    Raises:
        One of UNREADABLE.
    """
    metrics = storage.read_json(storage.join(checkpoint, "model", "metrics.json"))
    if metrics.get("best") is None:
        return None
    return "model" if (metrics["best"], 0) == (metrics["epoch"], metrics.get("steps", 0)) else "best"


def _is_whole(checkpoint: str) -> bool:
    try:
        for model in {"model", best(checkpoint) or "model"}:
            checkpoints.load(storage.join(checkpoint, model))
        epoch, steps = progress(checkpoint)
        for tensors in ("optimizer", "random") if steps else ("optimizer",):
            safetensors.torch.load(storage.read_bytes(storage.join(checkpoint, f"{tensors}.safetensors")))
        for name in ("metrics.parquet", "rejects.parquet"):
            storage.read_table(storage.join(checkpoint, name))
    except UNREADABLE:
        return False
    return epoch + steps > 0
