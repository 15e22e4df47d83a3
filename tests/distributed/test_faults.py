"""Evaluations that are killed at random moments end as if nothing had happened."""

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT, end_session, ray_processes, wait_for

from raypurify import storage
from raypurify.evaluation import results
from raypurify.evaluation.grid import EvaluationConfig
from raypurify.jobs.evaluate import evaluate
from raypurify.jobs.resources import ActorPool
from raypurify.runs import schema

pytestmark = pytest.mark.slow
RESOURCES = ActorPool(actors=2, cpus_per_actor=1, batch=50)


def config(small_classifier: str, small_purifier: str) -> EvaluationConfig:
    return EvaluationConfig(
        data="digits",
        split="train",
        classifiers=(small_classifier,),
        purifiers=(small_purifier,),
        attacks=("pgd,epsilon=0.1,steps=20",),
    )


def scores(output: str) -> dict[str, list[object]]:
    (cell,) = storage.read_table(f"{output}/cells.parquet")["cell"].to_pylist()
    return results.read_scores(output, cell, schema.SCORES.names).sort_by("id").to_pydict()


@pytest.fixture(scope="module")
def undisturbed(
    local_ray: None, small_classifier: str, small_purifier: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[object]]:
    output = str(tmp_path_factory.mktemp("runs") / "undisturbed")
    evaluate(config(small_classifier, small_purifier), RESOURCES, output)
    return scores(output)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_killed_driver(
    seed: int, undisturbed: dict[str, list[object]], small_classifier: str, small_purifier: str, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    flags = ["--data", "digits", "--split", "train", "--classifiers", small_classifier, "--purifiers", small_purifier]
    flags += ["--attacks", "pgd,epsilon=0.1,steps=20", "--actors", "2", "--cpus-per-actor", "1", "--batch", "50"]
    command = [sys.executable, str(ROOT / "jobs/evaluate.py"), *flags, "--output", str(output)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    driver = subprocess.Popen(command, env=environment, start_new_session=True)
    wait_for(lambda: (output / "cells.parquet").exists(), 120, "start of the evaluation")
    time.sleep(random.Random(seed).uniform(2, 15))
    end_session(driver)
    evaluate(config(small_classifier, small_purifier), RESOURCES, str(output))
    assert scores(str(output)) == undisturbed


def test_a_killed_actor(
    undisturbed: dict[str, list[object]], small_classifier: str, small_purifier: str, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    killed: list[int] = []

    def kill_one() -> None:
        wait_for(lambda: list(output.glob("scores/*/*.parquet")), 120, "first unit")
        victim = ray_processes("MapWorker")[0]
        victim.kill()
        killed.append(victim.pid)

    watcher = threading.Thread(target=kill_one)
    watcher.start()
    evaluate(config(small_classifier, small_purifier), RESOURCES, str(output))
    watcher.join()
    assert killed
    assert scores(str(output)) == undisturbed
