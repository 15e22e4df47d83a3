"""A Ray cluster that grows and shrinks on this machine, for as long as a command runs.

    python cluster/local.py --cpu-nodes 3 --cpus 1 -- python jobs/evaluate.py --actors 3 --output runs/grown

The head does no work. Nodes start once the command asks for more than there is, and end once they are idle; how many
there are is printed when it changes. The exit status is the command's.
"""

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

START, STOP = 60, 20
"""Seconds that the head is given to start, which takes about ten, and all processes to end."""
HEAD, HEAD_ID = "ray.head.default", "f" * 51 + "00000"
"""The head's type and name, as Ray's provider of nodes on one machine has them."""


def main() -> int:
    """Run a command on a cluster of its own; returns its exit status, or 128 and the signal that it died of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu-nodes", type=int, default=3, help="nodes without a GPU, at most")
    parser.add_argument("--gpu-nodes", type=int, default=0, help="nodes with a GPU, at most; all share the first one")
    parser.add_argument("--cpus", type=int, default=2, help="CPUs that a node declares, whatever the machine has")
    parser.add_argument("--idle", type=float, default=10, help="seconds after which an idle node ends")
    parser.add_argument("command", nargs="+", metavar="-- COMMAND", help="what to run, with its own flags")
    arguments = parser.parse_args()
    handle_signals(lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as scratch:  # short: paths of sockets
        set_environment(scratch)
        head = start_head(Path(scratch), config(arguments))
        try:
            wait_for_autoscaler(head, Path(scratch))
            return run(arguments.command)
        finally:
            handle_signals(signal.SIG_IGN)
            end(head)


def handle_signals(handler: Any) -> None:
    """Give Ctrl-C, and what a scheduler sends, to ``handler``."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def set_environment(scratch: str) -> None:
    """Set what the head and its clients share: a token, so that no other user can send work, and the address."""
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_TMPDIR=scratch)
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0", RAY_SCHEDULER_EVENTS="0")
    from ray.util import get_node_ip_address  # not before: Ray reads the environment once

    with socket.socket() as free:
        free.bind(("", 0))
        os.environ["RAY_ADDRESS"] = f"{get_node_ip_address()}:{free.getsockname()[1]}"


def config(arguments: argparse.Namespace) -> dict[str, Any]:
    """What ``ray up`` would take from a file: the types of nodes, and their limits."""
    cpu = {"CPU": arguments.cpus, "object_store_memory": 150 << 20}
    limits = {HEAD: ({"CPU": 0}, 0), "cpu": (cpu, arguments.cpu_nodes), "gpu": ({**cpu, "GPU": 1}, arguments.gpu_nodes)}
    types = {name: {"resources": of, "node_config": {}, "max_workers": limit} for name, (of, limit) in limits.items()}
    flags = ("launch_multiple", "use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check")
    lists = ("cluster_synced_files", "setup_commands", "head_setup_commands", "worker_setup_commands")
    provider = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    own = {"gcs_address": os.environ["RAY_ADDRESS"], "head_node_id": HEAD_ID, **dict.fromkeys(flags, True)}
    return {
        "cluster_name": "local",
        "provider": {"type": "external", "module": provider, **own},
        "head_node_type": HEAD,
        "available_node_types": types,
        "max_workers": arguments.cpu_nodes + arguments.gpu_nodes,
        "idle_timeout_minutes": arguments.idle / 60,
        **{name: [] for name in lists},
    }


def start_head(scratch: Path, config: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start the head, which leads the process group that all nodes belong to."""
    (scratch / "config.json").write_text(json.dumps(config))
    command = ["env", "-u", "RAY_ADDRESS", sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--port={os.environ['RAY_ADDRESS'].rpartition(':')[2]}", "--num-cpus=0", "--include-dashboard=false"]
    command += ["--object-store-memory=300000000", f"--autoscaling-config={scratch / 'config.json'}"]
    own = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    own |= {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID, "RAY_NODE_TYPE_NAME": HEAD}
    with (scratch / "head.log").open("wb") as log:
        return subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log, start_new_session=True)


def wait_for_autoscaler(head: subprocess.Popen[bytes], scratch: Path) -> None:
    """Wait until the autoscaler has reported: before that, the cluster looks like one that will not grow."""
    host, _, port = os.environ["RAY_ADDRESS"].rpartition(":")
    until = time.monotonic() + START
    while time.monotonic() < until and head.poll() is None:
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            if nodes():
                return
        time.sleep(0.5)
    sys.exit(f"error: the head did not start:\n{(scratch / 'head.log').read_text()[-2000:]}")


def nodes() -> Counter[str]:
    """How many nodes of each type there are; none where the autoscaler has not reported, or Ray does not answer."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    with suppress(Exception):  # Ray documents none; a busy head is asked again
        status = get_cluster_status(os.environ["RAY_ADDRESS"])
        if (status.stats.autoscaler_version or "0") != "0":
            return Counter(node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes))
    return Counter()


def run(command: list[str]) -> int:
    """Run the command to its end, with signals passed on to it, and print how many nodes there are meanwhile."""
    start, shown = time.monotonic(), Counter[str]()
    process = subprocess.Popen(command, start_new_session=True)  # or a terminal's Ctrl-C would reach it twice
    handle_signals(lambda number, _: process.send_signal(number))
    while process.poll() is None:
        if (now := nodes()) and now != shown:
            shown = now
            told = ", ".join(f"{now[name]} {'head' if name == HEAD else name}" for name in sorted(now, reverse=True))
            print(f"[{time.monotonic() - start:.0f} s] nodes: {told}", file=sys.stderr, flush=True)
        time.sleep(0.5)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def end(head: subprocess.Popen[bytes]) -> None:
    """End all processes of the cluster."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + STOP
        with suppress(ProcessLookupError):
            os.killpg(head.pid, number)
            while time.monotonic() < until:
                head.poll()  # a head that nobody has waited for would count as one that runs
                os.killpg(head.pid, 0)
                time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
