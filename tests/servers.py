"""Servers that tests of several folders start, and how they wait for them."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import pytest
from fault_proxy import Faults, Proxy, running

from raypurify import storage

KEYS_OF_A_PAGE = 200
"""Objects that the S3 server lists at once; Amazon's lists 1,000."""


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


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A bucket on a real S3 server over HTTP; its endpoint and keys are in the environment, as users have them."""
    port = free_port()
    moto = Path(sys.executable).parent / "moto_server"
    server = subprocess.Popen(
        [moto, "-H", "127.0.0.1", "-p", str(port)],
        env={**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": str(KEYS_OF_A_PAGE)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
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


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Lists folders, and knows no ranges."""

    def log_message(self, format: str, *args: object) -> None: ...


@contextlib.contextmanager
def serving(folder: Path, handler: type[http.server.SimpleHTTPRequestHandler] = QuietHandler) -> Iterator[int]:
    """A web server of a folder's files; its port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextlib.contextmanager
def faulty(faults: Faults) -> Iterator[Proxy]:
    """The S3 server of the environment behind a proxy that fails; the environment's endpoint is the proxy meanwhile."""
    target = urlsplit(os.environ["AWS_ENDPOINT_URL"]).port
    assert target is not None
    with running(target, faults) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


USER, WORD, SIGNATURE = "someone", "w0rd-s3cr3t", "s1gn4tur3-s3cr3t"


@contextlib.contextmanager
def guarded_web(folder: Path, *, withheld: str = "") -> Iterator[str]:
    """A web server that gives a folder's files to who knows the word, or a signature; its host and port.

    Args:
        withheld: a header that it does not send.
    """
    basic = "Basic " + base64.b64encode(f"{USER}:{WORD}".encode()).decode()

    class Guard(QuietHandler):
        def send_head(self):  # type: ignore[no-untyped-def]
            if self.headers.get("Authorization") == basic or f"sig={SIGNATURE}" in self.path:
                return super().send_head()
            self.send_error(403)
            return None

        def send_header(self, keyword: str, value: str) -> None:
            if keyword != withheld:
                super().send_header(keyword, value)

    with serving(folder, Guard) as port:
        yield f"127.0.0.1:{port}"


def files_with(text: str, folder: Path) -> list[str]:
    """Names of the files below a folder that hold a text, or are named by it."""
    there = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path.relative_to(folder)) for path in there if text in str(path) or text.encode() in path.read_bytes()]
