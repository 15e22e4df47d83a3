"""What a training that was cut off leaves of its checkpoints, brought in order before Ray Train reads it.

Ray Train keeps a list of checkpoints, its snapshot, which it writes in place: a crash can leave it cut. Checkpoints are
uploaded before they are listed, and taken off the list before they are removed: a crash can leave some that are not on
it.
"""

from __future__ import annotations

import ray

from raypurify import storage
from raypurify.training import saved

SNAPSHOT = "checkpoint_manager_snapshot.json"


def mend(folder: str) -> None:
    """Make the checkpoints' folder one that a training goes on from.

    A snapshot that cannot be read, or names what is not there, is written anew with the latest whole checkpoint.
    Checkpoints that are not in the snapshot are removed.
    """
    there = saved.names(folder)
    listed = _listed(folder)
    if listed is None or not listed <= there:
        latest = saved.latest(folder)
        listed = set() if latest is None else {latest}
        if latest is None:
            storage.remove(storage.join(folder, SNAPSHOT))
        else:
            storage.write_json(storage.join(folder, SNAPSHOT), _snapshot(latest))
    for name in there - listed:
        storage.remove(storage.join(folder, name))


def _listed(folder: str) -> set[str] | None:
    try:
        snapshot = storage.read_json(storage.join(folder, SNAPSHOT))
        return {result["checkpoint_dir_name"] for result in snapshot["checkpoint_results"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _snapshot(name: str) -> dict[str, object]:
    """Ray Train's snapshot of one checkpoint."""
    result = {"version": 0, "checkpoint_dir_name": name, "metrics": {}}
    return {
        "ray_version": ray.__version__,
        "checkpoint_results": [result],
        "checkpoint_report_indices": [0],
        "latest_checkpoint_result": result,
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": 1,
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
