"""Memory of a training on large images, in a Ray of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

SCRIPT = """
import sys
from raypurify.jobs.resources import TrainingResources
from raypurify.jobs.train import train
from raypurify.training.config import TrainingConfig

data, output = sys.argv[1:]
config = TrainingConfig(
    data=data, model="networks:Coarse", augmentation="none", epochs=2, batch=32, validation=16, precision="float32"
)
train(config, TrainingResources(cpus_per_worker=1), output)
"""
MOST = 1.5e9
"""Bytes of a process: its own, and what it maps of the object store."""


def class_folders(root: Path, count: int, side: int) -> None:
    """JPEGs of two classes: a colour each, with noise."""
    noise = np.random.default_rng(0).integers(0, 32, (side, side, 3), dtype=np.uint8)
    for number in range(count):
        folder = root / "train" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        colour = np.array([number % 2 * 100, number % 200, 100], np.uint8)
        Image.fromarray(np.roll(noise, number, axis=0) + colour).save(folder / f"{number}.jpg", quality=70)


def peaks(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """The largest resident set of each process of a job, by its number and last title."""
    most: dict[int, int] = {}
    titles: dict[int, str] = {}
    job = psutil.Process(process.pid)
    while process.poll() is None:
        for each in [job, *job.children(recursive=True)]:
            try:
                most[each.pid] = max(most.get(each.pid, 0), each.memory_info().rss)
                titles[each.pid] = " ".join(each.cmdline())[:60]
            except psutil.Error:
                continue  # it has ended
        time.sleep(0.2)
    return {f"{pid} {titles[pid]}": size for pid, size in most.items()}


@pytest.mark.slow
def test_every_process_of_a_training_on_large_images_stays_small(tmp_path: Path) -> None:
    class_folders(tmp_path / "images", 2000, 512)
    places = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "images"), str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
    )
    most = peaks(process)
    assert process.returncode == 0
    assert len(most) > 3
    assert {name: size for name, size in most.items() if size > MOST} == {}
