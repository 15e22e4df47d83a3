"""Jobs that are interrupted by Ctrl-C, or by what SIGTERM stands for: a scheduler, a cluster, ``ray job stop``."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, wait_for

from raypurify import runs, storage
from raypurify.images import encode_png

LINE = "interrupted: what is done stays done; give the same command to go on"
ONE_CPU = ["--actors", "1", "--cpus-per-actor", "1", "--batch", "50"]
TRAINING = ["--data", "digits", "--model", "a_net", "--classifier", "None", "--validation", "0"]

JOBS = {
    "train_mnist": [*TRAINING, "--epochs", "12", "--cpus-per-worker", "1"],
    "evaluate": ["--data", "digits", "--split", "train", "--purifiers", "identity", *ONE_CPU],
    "attack": ["--input", "digits", "--split", "train", "--attack", "pgd,epsilon=0.2,steps=100", *ONE_CPU],
    "clean": ["--purifier", "weights/mnist/cru_net-a_net", *ONE_CPU],
    "demo": ["--epochs", "3"],
}
MOMENTS = {
    "train_mnist": ["_LEASE", "checkpoints/*/model/config.json", "epoch 8/12"],
    "evaluate": ["_LEASE", "scores/*/000000.parquet", "scores/*/000001.parquet"],
    "attack": ["_LEASE", "images/train-000000.parquet", "images/train-000001.parquet"],
    "clean": ["_LEASE", "manifest/*.parquet", "manifest/*000002*.parquet"],
    "demo": ["a_net/_LEASE", "cru_net/_LEASE", "evaluation/scores/*/*.parquet"],
}
"""A file that appears, or a text that is printed, is a moment of a job: early, in the middle, late."""
MADE = ("**/model.safetensors", "scores/**/*.parquet", "images/**/*", "manifest/**/*", "*/scores/**/*.parquet")
"""What has to be the same to the byte, however often a job was interrupted."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for index in range(2500):
        pixels = generator.integers(0, 256, (64, 64, 1), dtype=np.uint8)
        (folder / f"{index:04d}.png").write_bytes(encode_png(pixels))
    return str(folder)


def command(job: str, output: Path, pictures: str) -> list[str]:
    more = ["--input", pictures] if job == "clean" else []
    weights = ["--classifiers", "weights/mnist/a_net"] if job == "evaluate" else []
    return [sys.executable, f"jobs/{job}.py", *JOBS[job], *more, *weights, "--output", str(output)]


def interrupt(words: list[str], number: signal.Signals, output: Path, moment: str, log: Path) -> tuple[int, str]:
    """Start a job, send it a signal at a moment: its exit code, and what it printed."""
    with log.open("wb") as file:
        job = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
        try:
            wait_for(lambda: job.poll() is not None or has_come(moment, output, log), 600, moment)
            job.send_signal(number)
            return job.wait(120), log.read_text()
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)


def has_come(moment: str, output: Path, log: Path) -> bool:
    """Whether a job holds its output, and what is a moment of it is there."""
    return any(output.glob("**/_LEASE")) and (any(output.glob(moment)) or moment in log.read_text())


def made(output: Path) -> dict[str, bytes]:
    paths = {path for pattern in MADE for path in output.glob(pattern) if path.is_file()}
    return {str(path.relative_to(output)): path.read_bytes() for path in paths if "checkpoints" not in path.parts}


def check_interrupted(code: int, printed: str, number: signal.Signals, output: Path) -> None:
    assert code == 128 + number, printed
    assert printed.count(LINE) == 1
    assert "Traceback" not in printed
    assert not list(output.glob("**/_LEASE"))
    for path in output.glob("**/run.json"):
        assert all(attempt["ended"] for attempt in storage.read_json(str(path))["attempts"])


@pytest.mark.parametrize(("job", "number"), [("train_mnist", signal.SIGINT), ("evaluate", signal.SIGTERM)])
def test_an_interrupted_job_says_so_and_releases_its_output(job: str, number: signal.Signals, tmp_path: Path) -> None:
    output = tmp_path / "run"
    words = [*command(job, output, ""), "--limit", "400"]
    code, printed = interrupt(words, number, output, MOMENTS[job][1], tmp_path / "log")
    check_interrupted(code, printed, number, output)
    assert "core_worker.cc" not in printed
    with pytest.raises(ValueError, match="holds a run with"), runs.hold(str(output), {}):
        pass


STARTED = """
import os, signal, threading, time
from dataclasses import dataclass
import psutil
from raypurify.distributed import cluster
from raypurify.runs import cli

@dataclass
class Flags:
    cpus: int = 1

def send():
    while not psutil.Process().children():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

def start(flags):
    threading.Thread(target=send).start()
    cluster.connect(cluster.Needs(kind="actor", count=1, cpus=flags.cpus))

cli.run(start, Flags(), [])
"""


def test_a_signal_while_ray_starts_is_an_interrupt() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    job = subprocess.run([sys.executable, "-c", STARTED], env=environment, capture_output=True, text=True, check=False)
    assert (job.returncode, job.stdout, job.stderr) == (128 + signal.SIGTERM, "", f"{LINE}\n")


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_a_job_that_was_interrupted_three_times_ends_with_the_same_bytes(
    job: str, pictures: str, tmp_path: Path
) -> None:
    output = tmp_path / "run"  # always the same, for a manifest has the URLs of its images
    words = command(job, output, pictures)
    subprocess.run(words, cwd=ROOT, check=True)
    expected = made(output)
    assert expected
    for number in (signal.SIGINT, signal.SIGTERM):
        shutil.rmtree(output)
        for moment in MOMENTS[job]:
            code, printed = interrupt(words, number, output, moment, tmp_path / "log")
            check_interrupted(code, printed, number, output)
        subprocess.run(words, cwd=ROOT, check=True)
        assert made(output) == expected
