"""Cleanings that lose their driver, a worker, a node, or a request in ten end as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, end_session, ray_processes, wait_for

from raypurify import storage
from raypurify.cleaning.cleaner import CleaningConfig
from raypurify.images import encode_png
from raypurify.jobs.clean import clean
from raypurify.jobs.resources import ActorPool

pytestmark = pytest.mark.slow
IMAGES = 2000
POOL = ActorPool(actors=2, cpus_per_actor=1, batch=50)
FLAGS = ["--actors", "2", "--cpus-per-actor", "1", "--batch", "50", "--max-rejects", "1"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(IMAGES):
        side = 40 if index % 5 else int(generator.integers(1, 60))
        pixels = generator.integers(0, 256, (side, 40, 1), dtype=np.uint8)
        data = encode_png(pixels)
        (folder / f"{index:05d}.png").write_bytes(data if index % 100 else data[: len(data) // 2])
    return str(folder)


@pytest.fixture(scope="module")
def config(source: str, small_purifier: str) -> CleaningConfig:
    return CleaningConfig(input=source, purifier=small_purifier)


def state(output: str) -> dict[str, object]:
    """Every image's bytes, and the rows of manifest and rejects, which have to name each input once."""
    rows = {
        part: [
            row for url in storage.list_files(f"{output}/{part}", ".parquet") for row in pq.read_table(url).to_pylist()
        ]
        for part in ("manifest", "rejects")
    }
    ids = [row["id"] for part in rows.values() for row in part]
    assert sorted(ids) == [f"{index:05d}.png" for index in range(IMAGES)]
    for row in rows["manifest"]:
        row["output"] = row["output"].removeprefix(output)
    images = {url.removeprefix(output): storage.read_bytes(url) for url in storage.list_files(f"{output}/images")}
    return {**rows, "images": images}


@pytest.fixture(scope="module")
def undisturbed(local_ray: None, config: CleaningConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    output = str(tmp_path_factory.mktemp("runs") / "undisturbed")
    totals = clean(config, POOL, output)
    assert (totals.cleaned, totals.rejected) == (1980, 20)
    return state(output)


def command(config: CleaningConfig, output: object) -> list[str]:
    flags = ["--input", config.input, "--purifier", config.purifier, "--output", str(output)]
    return [sys.executable, str(ROOT / "jobs/clean.py"), *flags, *FLAGS]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_killed_driver(seed: int, undisturbed: dict[str, object], config: CleaningConfig, tmp_path: Path) -> None:
    output = tmp_path / "run"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    driver = subprocess.Popen(command(config, output), env=environment, start_new_session=True)
    wait_for(lambda: list(output.glob("images/*")), 120, "first image")
    time.sleep(random.Random(seed).uniform(0, 4))
    end_session(driver)
    before = {path: path.stat().st_mtime_ns for path in output.glob("manifest/*")}
    clean(config, POOL, str(output))
    assert state(str(output)) == undisturbed
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items()), "finished work was done again"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_killed_worker(seed: int, undisturbed: dict[str, object], config: CleaningConfig, tmp_path: Path) -> None:
    output = tmp_path / "run"
    killed: list[int] = []

    def kill_one() -> None:
        wait_for(lambda: list(output.glob("images/*")), 120, "first image")
        time.sleep(random.Random(seed).uniform(0, 2))
        victim = ray_processes("MapWorker")[0]
        victim.kill()
        killed.append(victim.pid)

    watcher = threading.Thread(target=kill_one)
    watcher.start()
    clean(config, POOL, str(output))
    watcher.join()
    assert killed
    assert state(str(output)) == undisturbed


CLUSTER = """
import random, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from raypurify.cleaning.cleaner import CleaningConfig
from raypurify.jobs.clean import clean
from raypurify.jobs.resources import ActorPool

source, purifier, output, seed = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
ray.init(cluster.address, logging_level="ERROR")
errors = []

def run():
    try:
        clean(CleaningConfig(input=source, purifier=purifier), ActorPool(actors=3, batch=50), output)
    except BaseException as error:
        errors.append(error)

thread = threading.Thread(target=run)
thread.start()
while not list(Path(output).glob("images/*")):
    time.sleep(0.1)
time.sleep(random.Random(int(seed)).uniform(0, 2))
cluster.remove_node(nodes[0], allow_graceful=False)
cluster.add_node(num_cpus=2)
thread.join()
ray.shutdown()
cluster.shutdown()
sys.exit(repr(errors[0]) if errors else 0)
"""


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_killed_node(seed: int, undisturbed: dict[str, object], config: CleaningConfig, tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = [config.input, config.purifier, str(output), str(seed)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    cluster = subprocess.run([sys.executable, "-c", CLUSTER, *arguments], env=environment, timeout=300)
    if cluster.returncode:  # the node held something that could not be made again: the same command goes on
        clean(config, POOL, str(output))
    assert state(str(output)) == undisturbed


KILLER = """
import os, signal
from PIL import PngImagePlugin

load = PngImagePlugin.PngImageFile.load

def crash(self):
    if self.size == (13, 13):
        os.kill(os.getpid(), signal.SIGSEGV)
    return load(self)

PngImagePlugin.PngImageFile.load = crash
"""


def test_an_input_that_kills_its_worker_is_a_reject(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(KILLER)
    source = tmp_path / "in"
    source.mkdir()
    for index in range(300):
        side = 13 if index in (100, 200) else 12
        (source / f"{index:03d}.png").write_bytes(encode_png(np.full((side, side, 3), index % 256, np.uint8)))
    output = str(tmp_path / "out")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}
    job = subprocess.run(
        command(CleaningConfig(input=str(source), purifier="identity"), output), env=environment, timeout=400
    )
    assert job.returncode == 0
    rejects = [row for url in storage.list_files(f"{output}/rejects") for row in pq.read_table(url).to_pylist()]
    assert [row["id"] for row in rejects] == ["100.png", "200.png"]
    assert all(signal.Signals.SIGSEGV.name in row["reason"] for row in rejects)
    assert len(storage.list_files(f"{output}/images")) == 298
