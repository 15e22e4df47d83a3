"""What a crash can leave of a training's checkpoints, without Ray."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch

from raypurify import storage
from raypurify.distributed import snapshots
from raypurify.runs import schema
from raypurify.storage import checkpoints


def checkpoint(folder: str, name: str, epoch: int) -> None:
    """As :meth:`raypurify.training.worker.Worker.save` writes it."""
    place = storage.join(folder, name)
    checkpoints.save(storage.join(place, "model"), {}, {"weight": torch.ones(3)}, {"epoch": epoch})
    optimizer = safetensors.torch.save({"0.step": torch.ones(())})
    storage.write_bytes(storage.join(place, "optimizer.safetensors"), optimizer)
    storage.write_table(storage.join(place, "metrics.parquet"), pa.table({"loss": np.ones(epoch)}))
    storage.write_table(storage.join(place, "rejects.parquet"), schema.REJECTS.empty_table())


def listed(folder: str) -> list[str]:
    snapshot = storage.read_json(storage.join(folder, snapshots.SNAPSHOT))
    return [result["checkpoint_dir_name"] for result in snapshot["checkpoint_results"]]


def folders(folder: str) -> set[str]:
    return {url[len(folder) + 1 :].partition("/")[0] for url in storage.list_files(folder)} - {snapshots.SNAPSHOT}


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, s3: str, tmp_path: Path) -> str:
    """Three checkpoints; the names do not tell which is the latest."""
    place = str(tmp_path / "checkpoints") if request.param == "disk" else f"{s3}/{tmp_path.name}/checkpoints"
    for name, epoch in (("checkpoint_a", 2), ("checkpoint_b", 3), ("checkpoint_c", 1)):
        checkpoint(place, name, epoch)
    return place


@pytest.mark.parametrize("cut", [None, b"", b'{"checkpoint_results": [{"che', b"{}"])
def test_a_snapshot_that_cannot_be_read_is_written_anew(folder: str, cut: bytes | None) -> None:
    if cut is not None:
        storage.write_bytes(storage.join(folder, snapshots.SNAPSHOT), cut)
    snapshots.mend(folder)
    assert listed(folder) == ["checkpoint_b"]
    assert folders(folder) == {"checkpoint_b"}


@pytest.mark.parametrize(
    "name",
    ["model/config.json", "model/model.safetensors", "optimizer.safetensors", "metrics.parquet", "rejects.parquet"],
)
def test_a_checkpoint_that_is_cut_is_not_gone_on_from(folder: str, name: str) -> None:
    url = storage.join(folder, "checkpoint_b", name)
    storage.write_bytes(url, storage.read_bytes(url)[:-1]) if name != "model/config.json" else storage.remove(url)
    snapshots.mend(folder)
    assert listed(folder) == ["checkpoint_a"]


def test_what_the_snapshot_names_is_kept_and_nothing_else(folder: str) -> None:
    snapshot = json.dumps({"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_a"}]}).encode()
    storage.write_bytes(storage.join(folder, snapshots.SNAPSHOT), snapshot)
    snapshots.mend(folder)
    assert folders(folder) == {"checkpoint_a"}
    assert storage.read_bytes(storage.join(folder, snapshots.SNAPSHOT)) == snapshot


def test_without_a_whole_checkpoint_a_training_starts_afresh(folder: str) -> None:
    for name in folders(folder):
        storage.remove(storage.join(folder, name, "optimizer.safetensors"))
    storage.write_bytes(storage.join(folder, snapshots.SNAPSHOT), b"")
    snapshots.mend(folder)
    assert not storage.list_files(folder)
    snapshots.mend(folder)
