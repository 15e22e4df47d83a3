"""A group of workers shrinks when a node is lost, and grows when one comes, on a real cluster of three nodes."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from conftest import ray_processes, wait_for
from ray.cluster_utils import Cluster

from raypurify import storage
from raypurify.distributed import train as ray_train
from raypurify.jobs.resources import TrainingResources
from raypurify.jobs.train import train
from raypurify.training.config import TrainingConfig

CONFIG = TrainingConfig(
    data="digits", model="a_net", epochs=60, batch=64, limit=400, rate=1e-4, validation=0, precision="float32", seed=7
)
"""So slow that its loss stays far above what rounding changes."""
RESOURCES = TrainingResources(workers=1, max_workers=2, cpus_per_worker=1)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head and a node, each with room for one worker."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 200 << 20})
    nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
    ray.init(nodes.address, logging_level="ERROR")
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def loss(output: str) -> np.ndarray:
    return storage.read_table(f"{output}/metrics.parquet")["loss"].to_numpy()


@pytest.mark.slow
def test_a_group_of_workers_follows_the_nodes(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_train, "RESIZE_SECONDS", 5.0)
    output, alone = str(tmp_path / "run"), str(tmp_path / "alone")
    train(CONFIG, TrainingResources(cpus_per_worker=1, local=True), alone)
    seen: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            count = len(ray_processes("RayTrainWorker"))
            if count and seen[-1:] != [count]:
                seen.append(count)

    training = threading.Thread(target=train, args=(CONFIG, RESOURCES, output))
    watching = threading.Thread(target=watch)
    watching.start()
    training.start()
    try:
        extra = None
        wait_for(lambda: 2 in seen, 120, "two workers")
        wait_for(lambda: list(Path(output).glob("checkpoints/checkpoint_*")), 120, "checkpoint")
        lost = next(node for node in cluster.worker_nodes)
        cluster.remove_node(lost, allow_graceful=False)
        wait_for(lambda: seen[-1:] == [1], 120, "one worker")
        time.sleep(5)
        extra = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
        wait_for(lambda: seen[-1:] == [2], 180, "two workers again")
        training.join(600)
    finally:
        over.set()
        watching.join()
    assert extra is not None
    assert storage.is_success(output)
    curve, expected = loss(output), loss(alone)
    assert len(curve) == len(expected) == 60 * (400 // 64)
    np.testing.assert_allclose(curve[:20], expected[:20], rtol=1e-3)
    assert curve[-20:].mean() == pytest.approx(expected[-20:].mean(), rel=0.05)


def test_every_number_of_workers_has_to_divide_the_batch() -> None:
    with pytest.raises(ValueError, match="the number of workers must divide the batch of 64; got 3"):
        train(CONFIG, TrainingResources(workers=2, max_workers=4), "/nowhere")
    with pytest.raises(ValueError, match="max_workers must be at least workers=2; got 1"):
        TrainingResources(workers=2, max_workers=1)
