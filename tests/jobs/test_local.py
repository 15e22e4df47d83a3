"""The engine of one process: it needs no Ray, and goes on where it was cut off."""

import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raypurify import runs, storage
from raypurify.evaluation.generation import GenerationConfig
from raypurify.evaluation.grid import EvaluationConfig
from raypurify.jobs.attack import attack
from raypurify.jobs.evaluate import dry_run, evaluate
from raypurify.jobs.resources import ActorPool, TrainingResources
from raypurify.jobs.train import train
from raypurify.runs import lease
from raypurify.training import TrainingConfig

WITHOUT_RAY = """
import sys
from importlib import metadata

distribution = metadata.distribution
metadata.distribution = lambda name: distribution("no-such-package" if name == "ray" else name)
sys.modules["ray"] = None

from raypurify.command.main import main

main()
"""
POOL = ActorPool(actors=1, batch=64, local=True)
ONE_WORKER = TrainingResources(cpus_per_worker=1, local=True)
TRAINING = TrainingConfig(
    data="digits", model="a_net", epochs=4, batch=64, limit=400, validation=64, precision="float32", seed=7
)


def command(*words: str) -> list[str]:
    return [sys.executable, "-c", WITHOUT_RAY, *words]


@pytest.mark.parametrize(
    "words",
    [
        "evaluate --data digits --limit 40 --attacks fgsm,epsilon=0.1 --purifiers threshold --classifiers {classifier}",
        "attack --input digits --limit 40 --attack fgsm,epsilon=0.1 --classifier {classifier}",
        "train digits --data digits --limit 200 --epochs 1 --validation 0 --model a_net --classifier None",
        "clean --input {pictures} --purifier mean_filter",
    ],
)
def test_a_job_needs_no_ray(words: str, small_classifier: str, tmp_path: Path) -> None:
    pictures, output = tmp_path / "pictures", tmp_path / "run"
    pictures.mkdir()
    Image.fromarray(np.full((9, 9), 7, np.uint8)).save(pictures / "a.png")
    asked = words.format(classifier=small_classifier, pictures=pictures).split()
    job = command(*asked, "--local", "--output", str(output))
    done = subprocess.run(job, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert storage.is_success(str(output))


def made(output: Path) -> Mapping[str, bytes]:
    paths = [*output.glob("scores/**/*.parquet"), *output.glob("model/model.safetensors")]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    ("words", "moment"),
    [
        (
            "evaluate --data digits --split train --limit 600 --attacks pgd,epsilon=0.1,steps=10 --purifiers identity "
            "--actors 1 --classifiers {classifier}",
            "scores/*/000001.parquet",
        ),
        (
            "train digits --data digits --epochs 6 --validation 0 --model a_net --classifier None --cpus-per-worker 1",
            "checkpoints/checkpoint_000002/model/config.json",
        ),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    words: str, moment: str, small_classifier: str, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    job = command(*words.format(classifier=small_classifier).split(), "--local", "--output", str(output))
    subprocess.run(job, check=True, capture_output=True)
    expected = made(output)
    assert expected
    shutil.rmtree(output)
    with subprocess.Popen(job, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(output.glob(moment)):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("interrupted: what is done stays done; give the same command to go on\n")
    assert not (output / "_LEASE").exists()
    assert not (output / "_SUCCESS").exists()
    subprocess.run(job, check=True, capture_output=True)
    assert made(output) == expected


def test_a_dry_run_is_of_one_process_with_the_threads_of_all(small_classifier: str) -> None:
    config = EvaluationConfig(data="digits", limit=20, classifiers=(small_classifier,), attacks=("none",))
    found = dry_run(config, dataclasses.replace(POOL, actors=2))
    assert found["actors"] == "1 actor(s) of 2 CPU(s) each"
    assert found["tried"] == "20 on cpu"


def test_two_do_not_write_to_one_output(small_classifier: str, tmp_path: Path) -> None:
    config = EvaluationConfig(data="digits", limit=20, classifiers=(small_classifier,), attacks=("none",))
    with lease.hold(str(tmp_path / "run")), pytest.raises(ValueError, match="writes to this output since"):
        evaluate(config, POOL, str(tmp_path / "run"))


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(runs.StoppedError, match="the training diverged in epoch 1"):
        train(dataclasses.replace(TRAINING, rate=1e30), ONE_WORKER, str(tmp_path / "run"))


def test_what_cannot_be_done_here_is_refused_with_the_flag(small_classifier: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"workers: with local this process is the only one; got 2"):
        TrainingResources(workers=2, local=True)
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config = GenerationConfig(input="digits", limit=20, attack="fgsm", classifier=small_classifier)
    with pytest.raises(ValueError, match=r"torch finds none on this machine. Give --gpus-per-actor 0"):
        attack(config, dataclasses.replace(POOL, gpus_per_actor=1), str(tmp_path / "run"))
