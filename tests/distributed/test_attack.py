"""Attacked datasets: made once, readable as datasets, and honest about what rounding to 8 bits does."""

import dataclasses
from pathlib import Path

import numpy as np
from attacked_digits import config as config
from attacked_digits import images_of

from raypurify import storage
from raypurify.data import open_source, read_rows
from raypurify.evaluation.generation import AttackedImages, GenerationConfig, grid_of
from raypurify.jobs.attack import attack
from raypurify.jobs.resources import ActorPool
from raypurify.runs.status import status_of
from raypurify.training.batches import batch_of

TWO = ActorPool(actors=2, batch=64)


def test_images_are_those_of_plain_torch_and_a_dataset(
    local_ray: None, config: GenerationConfig, tmp_path: Path
) -> None:
    output = str(tmp_path / "run")
    figures = attack(dataclasses.replace(config, png=True), TWO, output)
    table = images_of(output)
    source = open_source("digits", split="train", limit=256)
    rows = read_rows(source.shards[0], 0, 256)
    batch = batch_of(np.asarray(rows.images), rows.labels, (), "cpu")
    expected = AttackedImages(grid_of(config, "digits", 256, 250), "cpu")(batch.x, batch.y, rows.ids).sort_by("id")
    assert table["id"].equals(expected["id"])
    same = np.array(table["image"].to_pylist(), object) == np.array(expected["image"].to_pylist(), object)
    assert same.mean() > 0.98  # a sign that ties to rounding may move a pixel
    for name in ("pred_clean", "pred_adversarial", "pred_rounded"):
        assert (table[name].to_numpy() == expected[name].to_numpy()).mean() > 0.99
    assert figures["n"] == 256
    assert storage.read_json(f"{output}/run.json")["attempts"][0]["counts"]["success_rounded"] is not None
    status = status_of(output)
    assert (status.job, status.state) == ("attack", "finished")
    assert [(part.done, part.total) for part in status.extent.parts] == [(16, 16), (256, 256)]

    for place in ("images", "png"):
        there = open_source(f"{output}/{place}", split="train")
        assert there.rows == 256
    shards = open_source(f"{output}/images", split="train").shards
    assert len(shards) == 16
    attacked = [read_rows(shard, 0, shard.rows) for shard in shards]
    by_id = {name: image for part in attacked for name, image in zip(part.ids, part.images, strict=True)}
    clean = dict(zip(rows.ids, np.asarray(rows.images), strict=True))
    change = np.array([np.abs(image.astype(int) - clean[name]).max() for name, image in by_id.items()])
    assert change.max() == 26, "epsilon 0.1 is 25.5 of 255, rounded"
