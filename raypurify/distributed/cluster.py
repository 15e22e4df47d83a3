"""The Ray cluster: the one that is there, or a local one that keeps CPUs free for reads."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from raypurify import runs, storage

FREE_CPUS = 2
"""Logical CPUs beyond those of actors and workers; without them reads could never be scheduled."""


def connect(cpus: float, *, use_gpu: bool = False) -> dict[str, Any]:
    """Join the cluster of ``RAY_ADDRESS`` (a submitted job has it), or start a local Ray.

    Args:
        cpus: logical CPUs that the actors or workers of the job take together.
        use_gpu: whether they need GPUs.

    Returns:
        The hardware, for ``run.json``.

    Raises:
        ValueError: ``use_gpu`` on a cluster without GPUs.
    """
    if not ray.is_initialized():
        if os.environ.get("RAY_ADDRESS"):
            _start()
        else:
            _start(address="local", num_cpus=math.ceil(cpus) + FREE_CPUS)
    quiet()
    resources = ray.cluster_resources()
    if use_gpu and not resources.get("GPU"):
        raise ValueError("--use-gpu: this Ray cluster has no GPU; leave the flag out, or join a cluster that has one")
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return {**runs.machine(), "nodes": len(nodes), "cpus": resources.get("CPU", 0), "gpus": resources.get("GPU", 0)}


def _start(**options: Any) -> None:
    """``ray.init``, which leaves this process' handlers of signals, and its terminal, as they are."""
    # Its C++ part prints an error for every pool of Ray Data. This sets the level of this process alone: Ray's own
    # processes inherit os.environ, which putenv leaves as it is.
    if "RAY_BACKEND_LOG_LEVEL" not in os.environ:
        os.putenv("RAY_BACKEND_LOG_LEVEL", "fatal")
    with handlers_kept(), _stderr_held():
        ray.init(logging_level=logging.ERROR, **options)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put this process' handlers of SIGINT and SIGTERM back at the end: Ray sets its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _stderr_held() -> Iterator[None]:
    """Keep what is written to the file of standard error from the terminal, and show it if the block raises."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def quiet() -> None:
    """Keep messages of routine of Ray Data and Ray Train from the terminal; their warnings still reach it."""
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train reports each epoch under the name of one of its files
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.WARNING)
            handler.addFilter(_not_of_progress_bars)


def _not_of_progress_bars(record: logging.LogRecord) -> bool:
    return "Progress bars disabled" not in str(record.msg)


def check_output(output: str, *, shared_filesystem: bool) -> None:
    """Refuse a local path on a cluster of several hosts.

    Raises:
        ValueError: workers on other hosts would write to disks of their own.
    """
    hosts = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(hosts) > 1 and storage.is_local(output) and not shared_filesystem:
        raise ValueError(
            f"{output} is a local path, but the cluster has {len(hosts)} hosts: give a URL such as s3://bucket/run, "
            "or --shared-filesystem if every host sees that path"
        )
