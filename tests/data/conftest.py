from __future__ import annotations

import functools
import gzip
import http.server
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RAYPURIFY_CACHE", str(folder))
    return folder


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file, as the format's description has it."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def write_mnist() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    def write(folder: Path, *, rows: int = 7, split: str = "train", gz: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Write small IDX files, and return their images (N, 28, 28) and labels."""
        rng = np.random.default_rng(rows)
        images = rng.integers(0, 256, (rows, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, rows, dtype=np.uint8)
        prefix = {"train": "train", "test": "t10k"}[split]
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            data = idx_bytes(array)
            (folder / (name + ".gz" * gz)).write_bytes(gzip.compress(data) if gz else data)
        return images, labels

    return write


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def http_root(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL at which a real HTTP server serves it. The server lists folders, and knows no ranges."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def s3_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty bucket on a real S3 server (moto), with the credentials in the environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    program = Path(sys.executable).with_name("moto_server")
    with subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(endpoint)
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
            monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            urllib.request.urlopen(urllib.request.Request(f"{endpoint}/data", method="PUT"), timeout=10).close()
            yield "s3://data"
        finally:
            server.terminate()


def _wait_for(url: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except urllib.error.URLError:
            time.sleep(0.1)
    raise TimeoutError(f"{url} does not answer")
