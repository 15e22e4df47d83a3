"""Ray Train with one worker against a bare loop: the same step, batch, precision and threads.

A-net is trained on clean images, and CRU-Net before it against attacks on both. The loop holds its images in memory.
Start-up and the first epoch, which warms caches, are left out; every later second counts, waiting for images too.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time

import _harness
import numpy as np
import torch

from raypurify import storage
from raypurify.data import open_source, read_rows
from raypurify.jobs.resources import TrainingResources
from raypurify.jobs.train import prepare, train
from raypurify.training.batches import batch_of
from raypurify.training.config import TrainingConfig
from raypurify.training.objectives import train_step
from raypurify.training.worker import Worker

THREADS = 2


def ray_train(config: TrainingConfig) -> float:
    """Images a second of the epochs after the first, by the run's own ``metrics.parquet``."""
    with tempfile.TemporaryDirectory() as output:
        train(config, TrainingResources(cpus_per_worker=THREADS), output + "/run")
        metrics = storage.read_table(output + "/run/metrics.parquet")
    later = metrics["epoch"].to_numpy() > 0
    seconds = config.batch / metrics["images_per_second"].to_numpy()[later]
    return float(config.batch * later.sum() / seconds.sum())


def bare_loop(config: TrainingConfig) -> float:
    """Images a second of one process with the images in memory."""
    torch.set_num_threads(THREADS)
    source = open_source(config.data, split="train", limit=config.limit, view=config.view)
    rows = [read_rows(shard, 0, shard.rows) for shard in source.shards]
    images = np.concatenate([np.asarray(part.images) for part in rows])
    labels = np.concatenate([part.labels for part in rows])
    objective = Worker(prepare(config, TrainingResources()), 0, 1, "cpu").objective
    steps = len(images) // config.batch
    generator = np.random.default_rng(0)
    started = 0.0
    for epoch in range(config.epochs):
        if epoch == 1:
            started = time.perf_counter()
        order = generator.permutation(len(images))
        for step in range(steps):
            picked = order[step * config.batch : (step + 1) * config.batch]
            batch = batch_of(images[picked], labels[picked], picked.tolist(), "cpu")
            losses, _ = train_step(objective, batch, epoch * steps + step)
            losses["loss"].item()
    return (config.epochs - 1) * steps * config.batch / (time.perf_counter() - started)


def main() -> None:
    """Measure in turns and print the JSON object."""
    parser = _harness.arguments(__doc__)
    parser.add_argument("--data", default="mnist", help="dataset of 28x28 grey images")
    options = parser.parse_args()
    limit, turns = (3_840, 1) if options.quick else (19_200, 3)
    usual = TrainingConfig(
        data=options.data,
        model="a_net",
        augmentation="affine",
        epochs=3,
        limit=limit,
        validation=0,
        precision="float32",
    )
    against = dataclasses.replace(
        usual,
        model="cru_net",
        classifier="weights/mnist/a_net",
        train_against="adaptive",
        attacks=("pgd,epsilon=0.3,steps=7",),
        label_weight=1.0,
        augmentation="none",
        limit=limit // 10,
        precision="bfloat16",
    )
    trainings = {
        "A-net, bfloat16": dataclasses.replace(usual, precision="bfloat16"),
        "A-net, float32": usual,
        "CRU-Net, adaptive, bfloat16": against,
    }
    results = []
    for name, config in trainings.items():
        turned = [(ray_train(config), bare_loop(config)) for _ in range(turns)]
        median, baseline = (statistics.median(rates) for rates in zip(*turned, strict=True))
        compared = median, baseline, "bare torch loop", config.limit or 0
        results.append(_harness.result(f"{name}, batch {config.batch}", "images/s", *compared, turns=turns))
    _harness.report("training", results, packages=("torch", "ray"))


if __name__ == "__main__":
    main()
