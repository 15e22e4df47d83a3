"""A real local Ray for the tests here, and small real networks to send through it."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
import torch
from servers import free_port as free_port
from servers import wait_for as wait_for

from raypurify import checkpoints, models
from raypurify.classifiers import a_net
from raypurify.purifiers import cru_net

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def local_ray(s3: str) -> Iterator[None]:
    """After the S3 server: workers inherit the environment that Ray is started in, and find ``networks`` by it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        ray.init("local", num_cpus=6, include_dashboard=False, logging_level="ERROR", object_store_memory=300 << 20)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def small_classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A-net with random weights."""
    folder = str(tmp_path_factory.mktemp("weights") / "small_a_net")
    torch.manual_seed(0)
    checkpoints.save(folder, {"kind": "classifier", "plugin": "a_net", "params": {}}, a_net.build().state_dict())
    return folder


@pytest.fixture(scope="session")
def small_purifier(small_classifier: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A narrow CRU-Net that changes its images, said to be trained for the small classifier."""
    folder = str(tmp_path_factory.mktemp("weights") / "small_cru_net")
    torch.manual_seed(1)
    network = cru_net.build(width=2)
    torch.nn.init.normal_(network.output.weight, std=0.2)
    trained_for = {"classifier": "small_a_net", "sha256": models.load("classifier", small_classifier).sha256}
    config = {"kind": "purifier", "plugin": "cru_net", "params": {"width": 2}, "trained_for": trained_for}
    checkpoints.save(folder, config, network.state_dict())
    return folder


def ray_processes(name: str) -> list[psutil.Process]:
    """Processes of this test's own Ray whose title starts with ``ray::NAME``."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith(f"ray::{name}"):
                found.append(process)
    return found


def end_session(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started, as a lost machine would."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
