"""A real local Ray for the tests here, and small real networks to send through it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import psutil
import pytest
import ray
import torch

from raypurify import checkpoints, models, storage
from raypurify.classifiers import a_net
from raypurify.purifiers import cru_net

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def local_ray(s3: str) -> Iterator[None]:
    """After the S3 server: workers inherit the environment that Ray is started in."""
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Whether a server listens on this port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition, seconds: float, what: str) -> None:  # type: ignore[no-untyped-def]
    """Wait until ``condition()`` is true.

    Raises:
        TimeoutError: it did not become true; names ``what``.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"no {what} within {seconds} s")
        time.sleep(0.1)


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


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A bucket on a real S3 server over HTTP; its endpoint and keys are in the environment, as users have them."""
    port = free_port()
    moto = Path(sys.executable).parent / "moto_server"
    server = subprocess.Popen(
        [moto, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        wait_for(lambda: answers(port), 30, "S3 server")
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # of another test's server
        storage.filesystem("s3://runs")[0].mkdir("runs")
        yield "s3://runs"
    server.terminate()
    server.wait()
