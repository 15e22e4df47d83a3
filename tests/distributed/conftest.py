"""A real local Ray for the tests here."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import ray
import requests
from servers import free_port as free_port
from servers import wait_for as wait_for

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"


@contextlib.contextmanager
def ray_head(cpus: int, log: Path) -> Iterator[dict[str, str]]:
    """A Ray head with a dashboard and token authentication; the environment in which its users call the CLI."""
    port, dashboard = free_port(), free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")},
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="r"),  # short, for sockets; and no trace for other Rays to find
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    command = [str(RAY), "start", "--head", "--block", f"--port={port}", "--dashboard-host=127.0.0.1"]
    command += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}", f"--num-cpus={cpus}"]
    command += ["--object-store-memory=200000000", "--disable-usage-stats"]
    command += [f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    token = {"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}

    def answers() -> bool:
        try:
            return requests.get(f"{address}/api/jobs/", headers=token, timeout=5).ok
        except requests.ConnectionError:
            return False

    try:
        wait_for(answers, 60, f"dashboard: {log.read_text()[-500:]}")
        yield {**environment, "RAY_API_SERVER_ADDRESS": address, "GCS_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(environment["RAY_TMPDIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def local_ray(s3: str) -> Iterator[None]:
    """After the S3 server: workers inherit the environment that Ray is started in, and find our networks by it."""
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{here}{os.pathsep}{here.parent}", prepend=os.pathsep)
        ray.init("local", num_cpus=6, include_dashboard=False, logging_level="ERROR", object_store_memory=300 << 20)
    yield
    ray.shutdown()


def lose(output: Path, names: Sequence[str]) -> None:
    """Make a run one that was cut off."""
    for name in (*names, "_SUCCESS"):
        paths = list(output.glob(name))
        assert paths
        for path in paths:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


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
