"""What a training that was cut off leaves of its checkpoints, brought in order before Ray Train reads it.

Ray Train keeps a list of checkpoints, its snapshot, which it writes in place: a crash can leave it cut. Checkpoints are
uploaded before they are listed, and taken off the list before they are removed: a crash can leave some that are not on
it.
"""

from __future__ import annotations

from pathlib import PurePosixPath

import ray
import safetensors.torch

from raypurify import storage
from raypurify.storage import checkpoints

SNAPSHOT = "checkpoint_manager_snapshot.json"


def mend(folder: str) -> None:
    """Make the checkpoints' folder one that a training goes on from.

    A snapshot that cannot be read, or names what is not there, is written anew with the latest whole checkpoint.
    Checkpoints that are not in the snapshot are removed.
    """
    there = _names(folder)
    listed = _listed(folder)
    if listed is None or not listed <= there:
        epochs = {name: epoch for name in there if (epoch := _epoch(storage.join(folder, name))) is not None}
        latest = max(epochs, key=lambda name: epochs[name], default=None)
        listed = set() if latest is None else {latest}
        if latest is None:
            storage.remove(storage.join(folder, SNAPSHOT))
        else:
            storage.write_json(storage.join(folder, SNAPSHOT), _snapshot(latest, epochs[latest]))
    for name in there - listed:
        storage.remove(storage.join(folder, name))


def _names(folder: str) -> set[str]:
    _, root = storage.filesystem(folder)
    paths = (PurePosixPath(storage.filesystem(url)[1]).relative_to(root).parts for url in storage.list_files(folder))
    return {parts[0] for parts in paths if len(parts) > 1 and parts[0].startswith("checkpoint_")}


def _listed(folder: str) -> set[str] | None:
    try:
        snapshot = storage.read_json(storage.join(folder, SNAPSHOT))
        return {result["checkpoint_dir_name"] for result in snapshot["checkpoint_results"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _epoch(checkpoint: str) -> int | None:
    """The epoch after which a checkpoint was written; None for one that is not whole."""
    try:
        checkpoints.load(storage.join(checkpoint, "model"))
        safetensors.torch.load(storage.read_bytes(storage.join(checkpoint, "optimizer.safetensors")))
        storage.read_table(storage.join(checkpoint, "metrics.parquet"))
        return int(storage.read_json(storage.join(checkpoint, "model", "metrics.json"))["epoch"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
        return None


def _snapshot(name: str, epoch: int) -> dict[str, object]:
    """Ray Train's snapshot of one checkpoint."""
    result = {"version": 0, "checkpoint_dir_name": name, "metrics": {}}
    return {
        "ray_version": ray.__version__,
        "checkpoint_results": [result],
        "checkpoint_report_indices": [epoch - 1],
        "latest_checkpoint_result": result,
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": epoch,
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
