"""What a job needs, held against what a cluster has; and every job on clusters that are small."""

import pytest
import ray

from raypurify.distributed import cluster
from raypurify.distributed.cluster import Needs
from raypurify.distributed.train import TrainingResources
from raypurify.distributed.units import ActorPool

GPU_NODE = {"CPU": 8.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("needs", "nodes", "room"),
    [
        (ActorPool().needs, [{"CPU": 2.0}], 2),
        (ActorPool(actors=3, cpus_per_actor=2).needs, [{"CPU": 3.0}] * 2, 2),
        (ActorPool(gpus_per_actor=0.5).needs, [GPU_NODE], 2),
        (ActorPool(gpus_per_actor=1).needs, [GPU_NODE, {"CPU": 64.0}], 1),
        (TrainingResources().needs, [{"CPU": 1.0}], 0),
        (TrainingResources(workers=8).needs, [{"CPU": 4.0}, {}], 2),
    ],
)
def test_room_is_counted_node_by_node(needs: Needs, nodes: list[dict[str, float]], room: int) -> None:
    assert needs.room(nodes) == room


@pytest.mark.parametrize(
    ("needs", "nodes", "message"),
    [
        (
            ActorPool().needs,
            [{"CPU": 1.0}],
            r"2 actor\(s\) of 1 CPU\(s\) each .* has 1 CPU\(s\) .* room for 1. Give --actors 1,",
        ),
        (TrainingResources().needs, [{"CPU": 1.0}], "room for 0. Give --cpus-per-worker 1,"),
        (TrainingResources(workers=8).needs, [{"CPU": 7.0}], "room for 3. Give --workers 2,"),
        (ActorPool(cpus_per_actor=4).needs, [{"CPU": 2.0}] * 9, "Give --cpus-per-actor 2 --actors 1,"),
        (TrainingResources(use_gpu=True).needs, [{"CPU": 8.0}], "has 8 .* and 0 GPU.* Give no --use-gpu,"),
        (ActorPool(gpus_per_actor=1).needs, [{"CPU": 8.0}], "Give --gpus-per-actor 0,"),
    ],
)
def test_too_small_a_cluster_is_refused_with_figures_and_a_flag(
    needs: Needs, nodes: list[dict[str, float]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        needs.check(nodes, grows=False)
    told = needs.check(nodes, grows=True)
    assert told is not None
    assert told.startswith("waiting for the cluster to grow: ")


def test_a_cluster_that_is_joined_is_measured(local_ray: None) -> None:
    all_of_it = int(ray.cluster_resources()["CPU"])
    pool = ActorPool(actors=all_of_it)
    assert cluster.connect(pool.needs)["cpus"] == all_of_it
    assert cluster.read_cpus(0.5, pool.needs) == 0
    assert cluster.read_cpus(0.5, ActorPool(actors=all_of_it - 1).needs) == 0.5
    with pytest.raises(ValueError, match=f"Give --actors {all_of_it}, or join"):
        cluster.connect(ActorPool(actors=all_of_it + 1).needs)
