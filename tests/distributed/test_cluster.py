"""What a job needs, held against what a cluster has; and every job on clusters that are small."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
from conftest import ROOT, ray_head

from raypurify.distributed import cluster
from raypurify.images import encode_png
from raypurify.jobs.resources import ActorPool, Needs, TrainingResources

GPU_NODE = {"CPU": 8.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("needs", "nodes", "room"),
    [
        (ActorPool().needs, [{"CPU": 2.0}], 2),
        (ActorPool(actors=3, cpus_per_actor=2).needs, [{"CPU": 3.0}] * 2, 2),
        (ActorPool(gpus_per_actor=0.5).needs, [GPU_NODE], 2),
        (ActorPool(gpus_per_actor=1).needs, [GPU_NODE, {"CPU": 64.0}], 1),
        (ActorPool(actor_resources=("device=1",)).needs, [{"CPU": 8.0, "device": 1.0}] * 3 + [{"CPU": 8.0}], 3),
        (ActorPool(actors=3, actor_resources=("device=0.1",)).needs, [{"CPU": 8.0, "device": 0.3}], 3),
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
        (
            ActorPool(actor_resources=("device=0.5",)).needs,
            [{"CPU": 8.0}],
            r"and 0.5 device each .* 0 GPU\(s\), 0 device on .* Give no --actor-resources,",
        ),
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


@pytest.mark.parametrize("text", ["device", "device=", "device=0", "device=x", "=1", "CPU=2", "device=inf"])
def test_a_custom_resource_is_a_name_and_an_amount(text: str) -> None:
    with pytest.raises(ValueError, match="actor_resources: expected NAME=AMOUNT"):
        ActorPool(actor_resources=(text,))


def test_a_cluster_that_is_joined_is_measured(local_ray: None) -> None:
    all_of_it = int(ray.cluster_resources()["CPU"])
    pool = ActorPool(actors=all_of_it)
    assert cluster.connect(pool.needs)["cpus"] == all_of_it
    assert cluster.read_cpus(0.5, pool.needs) == 0
    assert cluster.read_cpus(0.5, ActorPool(actors=all_of_it - 1).needs) == 0.5
    assert cluster.read_cpus(0.5, ActorPool(actors=all_of_it - 1).needs, ActorPool(actors=1).needs) == 0
    with pytest.raises(ValueError, match=f"Give --actors {all_of_it}, or join"):
        cluster.connect(ActorPool(actors=all_of_it + 1).needs)


SMALL = ["--data", "digits", "--epochs", "1", "--validation", "0", "--batch", "64"]
COMMANDS = {
    "train_mnist": SMALL,
    "evaluate": ["--data", "digits", "--limit", "100", "--purifiers", "identity", "--attacks", "fgsm"],
    "evaluate --reads apart": ["--data", "digits", "--limit", "100", "--purifiers", "identity", "--attacks", "fgsm"],
    "attack": ["--input", "digits", "--limit", "100", "--attack", "fgsm"],
    "clean": ["--purifier", "identity"],
    "demo": ["--epochs", "1"],
}
"""On small data, with the resources that are each job's default."""


@pytest.mark.slow
@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_every_job_ends_on_a_small_cluster_or_is_refused(cpus: int, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for index in range(20):
        (images / f"{index}.png").write_bytes(encode_png(np.full((28, 28, 1), index, np.uint8)))
    with ray_head(cpus, tmp_path / "log") as head:
        environment = {**head, "RAY_ADDRESS": head["GCS_ADDRESS"]}
        for name, flags in COMMANDS.items():
            job, *more = name.split()
            more += ["--input", str(images)] if job == "clean" else []
            words = [sys.executable, f"jobs/{job}.py", *flags, *more, "--output", str(tmp_path / "out" / name)]
            done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
            printed = done.stdout + done.stderr
            assert done.returncode == (2 if cpus == 1 else 0), printed
            if done.returncode:
                assert f"this Ray cluster has {cpus} CPU(s)" in printed, printed
                assert "Give --" in printed
                assert "Traceback" not in printed


@pytest.mark.slow
def test_a_refused_job_runs_with_the_flag_that_the_refusal_names(tmp_path: Path) -> None:
    with ray_head(1, tmp_path / "log") as head:
        environment = {**head, "RAY_ADDRESS": head["GCS_ADDRESS"]}
        for job, flag in (("train_mnist", "--cpus-per-worker 1"), ("evaluate", "--actors 1")):
            words = [sys.executable, f"jobs/{job}.py", *COMMANDS[job], "--output", str(tmp_path / job)]
            refused = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
            assert f"Give {flag}," in refused.stderr
            subprocess.run([*words, *flag.split()], cwd=ROOT, env=environment, check=True, timeout=500)
