"""The Ray cluster: the one that is there, or a local one that keeps CPUs free for reads."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import ray
from ray._private import worker as ray_driver
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]
from ray.experimental.internal_kv import _internal_kv_get

from raypurify import runs, storage
from raypurify.jobs.resources import Needs
from raypurify.runs import failures, log
from raypurify.storage.retries import RefusedError

FREE_CPUS = 2
"""Logical CPUs of a local Ray beyond those of actors and workers, for tasks that read."""


def connect(*needs: Needs) -> dict[str, Any]:
    """Join the cluster of ``RAY_ADDRESS`` (a submitted job has it), or start a local Ray that is large enough.

    Returns:
        The hardware, for ``run.json``.

    Raises:
        ValueError: a cluster that is too small, or has no GPU, and will not grow.
    """
    if not ray.is_initialized():
        if os.environ.get("RAY_ADDRESS"):
            _start()
        else:
            # Its dashboard would take longer to start than many a job runs.
            cpus = sum(pool.all_cpus for pool in needs) + FREE_CPUS
            _start(address="local", num_cpus=cpus, include_dashboard=False)
    quiet()
    resources = ray.cluster_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    free: Sequence[Mapping[str, float]] = nodes
    for pool in needs:
        waits = pool.check(free, grows=pool.room(free) < pool.count and _grows())
        if waits:
            log.tell(waits, stderr=True)
            if not pool.room(nodes):
                _await_room(pool, nodes)
        free = pool.left(free)
    return {**runs.machine(), "nodes": len(nodes), "cpus": resources.get("CPU", 0), "gpus": resources.get("GPU", 0)}


def check_room(*needs: Needs) -> None:
    """Hold a job against the cluster that it would join, if there is one; a local Ray would be large enough.

    Raises:
        ValueError: see :func:`connect`.
    """
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        connect(*needs)


def read_cpus(wanted: float, *needs: Needs) -> float:
    """CPUs of a task that reads: ``wanted``, or 0 where actors and workers leave no CPU of the cluster.

    Tasks that asked for more than is left could never start, and what waits for them neither.
    """
    left = ray.cluster_resources().get("CPU", 0) - sum(each.all_cpus for each in needs)
    return wanted if left >= wanted else 0


def _grows() -> bool:
    """Whether the cluster has an autoscaler."""
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    if (status.stats.autoscaler_version or "0") != "0":
        return True
    # Its first version leaves a status, in which a cluster of fixed size has a type of its own for each node.
    told = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
    types = told.get("autoscaler_report", {}).get("node_type_mapping") or {}
    return any(not name.startswith("node_") for name in types.values())


LASTING = 10
"""Looks, a second apart, at which an autoscaler has to say that none of its machines would do: at a single one it may
not have heard of a change yet."""


def _await_room(needs: Needs, nodes: Sequence[Mapping[str, float]]) -> None:
    """Wait until the cluster has grown by room for one of them, since some are of a kind that it can never have.

    Raises:
        ValueError: its autoscaler has no machine that they fit on.
    """
    group = ray.util.placement_group([needs.asked])
    lacking = 0
    try:
        while not group.wait(1):
            lacking = lacking + 1 if _has_no_machine(needs.asked) else 0
            if lacking == LASTING:
                raise needs.refusal(nodes, ", and its autoscaler has no machine that one of them fits on")
    finally:
        ray.util.remove_placement_group(group)


def _has_no_machine(asked: Mapping[str, float]) -> bool:
    """Whether the autoscaler (version 2) says that it can start no machine with these resources."""
    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status())
    gangs = reply.autoscaling_state.infeasible_gang_resource_requests
    requests = [*reply.autoscaling_state.infeasible_resource_requests]
    for gang in gangs:
        requests += [*gang.requests, *(one for bundle in gang.bundle_selectors for one in bundle.resource_requests)]
    return any(asked.items() <= dict(request.resources_bundle).items() for request in requests)


def _start(**options: Any) -> None:
    """``ray.init``, which leaves this process' handlers of signals, and its terminal, as they are."""
    # What fails is told once, by the job; Ray would print each further task that failed of the same.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # Its C++ part prints an error for every pool of Ray Data. This sets the level of this process alone: Ray's own
    # processes inherit os.environ, which putenv leaves as it is.
    if "RAY_BACKEND_LOG_LEVEL" not in os.environ:
        os.putenv("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray_driver.print_to_stdstream = _shown
    with _handlers_kept(), _stderr_held():
        ray.init(logging_level=logging.ERROR, **options)


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Leave this process' handlers of SIGINT and SIGTERM in place, in the block and after it: Ray would set its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    set_handler = signal.signal
    signal.signal = lambda number, _: signal.getsignal(number)  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = set_handler
        for number, handler in handlers.items():
            # Ray's C++ part sets handlers, too.
            signal.signal(number, handler)


@contextmanager
def _stderr_held() -> Iterator[None]:
    """Keep what is written to the file of standard error from the terminal, and show it if the block raises."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            held.seek(0)
            said = held.read().splitlines()
            os.dup2(terminal, 2)
            log.tell(*said, stderr=True)
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


SAID = 500
"""Lines of Ray's processes that are kept for the case that the work fails."""
_said: deque[str] = deque(maxlen=SAID)
_print = ray_driver.print_to_stdstream


def _shown(data: dict[str, Any], ignore_prefix: bool) -> None:
    """Print what workers print, without their names; what Ray, or a library, has to say on the way is kept.

    Args:
        data: lines of a process, as Ray's driver gets them.
        ignore_prefix: Ray's own, which it would print them with.
    """
    if data.get("pid") == "autoscaler":
        _print(data, ignore_prefix=False)
    elif data["is_err"] or data.get("pid") == "raylet":
        _said.extend(data["lines"])
        if any("memory pressure" in line for line in data["lines"]):
            _warn_of_memory()
    elif data["lines"]:  # the last message of Ray's has none
        # By Ray's own function, a line that is there twice would be counted and not printed.
        log.tell(*data["lines"])


@cache
def _warn_of_memory() -> None:
    """Say once that workers are ended and begun anew, which would else look like slow work."""
    log.tell("warning: Ray ends workers for want of memory: give fewer --actors or a lower --batch", stderr=True)


@contextmanager
def telling() -> Iterator[None]:
    """Note, in what the block raises, what Ray's processes said before: see :mod:`raypurify.runs.failures`.

    Raises:
        runs.StoppedError: workers lack something that this process has.
    """
    try:
        yield
    except Exception as error:
        said = [getattr(error, "workers_said", ""), *_said]
        error.workers_said = "\n".join(said).strip()  # type: ignore[attr-defined]
        lacking = _lacking(error)
        if lacking is not None:
            raise runs.StoppedError(lacking) from error
        raise


def _lacking(error: Exception) -> str | None:
    """What workers lack, where an error is of that."""
    reason = failures.raised(error)
    told = f"RefusedError: {reason}" if isinstance(reason, RefusedError) else str(reason)
    if refused := _REFUSED.search(told):
        return f"{refused[1]}. A worker was refused it: look at the credentials of each node"
    if missing := _NOT_FOUND.search(told):
        advice = "send the code along with ray job submit --working-dir ., or install it on each node"
        return f"workers of this cluster cannot import {missing[1]}: {advice}"
    return None


# Of a worker that could not start there is the text of its traceback only.
_REFUSED = re.compile(r"^\s*(?:[\w.]+\.)?(?:Denied|NoBucket|Refused)Error: (.+)$", re.MULTILINE)
_NOT_FOUND = re.compile(r"No module named '([\w.]+)'\s*$")


def quiet() -> None:
    """Keep messages of routine of Ray Data and Ray Train from the terminal; their warnings still reach it.

    Ray Data's errors, which come with tracebacks, do not: it raises what they tell of.
    """
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train reports each epoch under the name of one of its files
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.WARNING)
            handler.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record of Ray Data's tells what nothing else does: its errors come with an exception that is raised."""
    if record.levelno >= logging.ERROR:
        _said.append(record.getMessage())
        return False
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
