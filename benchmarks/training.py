"""Ray Train with one worker against a bare loop: the same step, batch, precision and threads.

The loop holds its images in memory. Start-up and the first epoch, which warms caches, are left out; every later second
counts, waiting for images too.
"""

from __future__ import annotations

import statistics
import tempfile
import time

import _harness
import numpy as np
import torch

from raypurify import models, storage
from raypurify.data import open_source, read_rows
from raypurify.jobs.resources import TrainingResources
from raypurify.jobs.train import prepare, train
from raypurify.training import TrainingConfig, batch_of
from raypurify.training.objectives import ClassifierObjective, Setup, train_step

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
    source = open_source(config.data, split="train", limit=config.limit)
    rows = [read_rows(shard, 0, shard.rows) for shard in source.shards]
    images = np.concatenate([np.asarray(part.images) for part in rows])
    labels = np.concatenate([part.labels for part in rows])
    network = models.untrained("classifier", prepare(config, TrainingResources()).network)
    network = models.placed(network.train(), "cpu")
    steps = len(images) // config.batch
    setup = Setup(config=config, network=network, total_steps=config.epochs * steps, device="cpu")
    objective = ClassifierObjective(setup)
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
    results = []
    for precision in ("bfloat16", "float32"):
        config = TrainingConfig(
            data=options.data,
            model="a_net",
            augmentation="affine",
            epochs=3,
            limit=limit,
            validation=0,
            precision=precision,
        )
        ours, theirs = [], []
        for _ in range(turns):
            ours.append(ray_train(config))
            theirs.append(bare_loop(config))
        median, baseline = statistics.median(ours), statistics.median(theirs)
        name = f"A-net, batch {config.batch}, {precision}"
        results.append(_harness.result(name, "images/s", median, baseline, "bare torch loop", limit, turns=turns))
    _harness.report("training", results, packages=("torch", "ray"))


if __name__ == "__main__":
    main()
