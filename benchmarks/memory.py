"""Peak memory of an evaluation's driver and workers: 10,000 images against 60,000.

Each evaluation runs in a fresh process with a Ray of its own. The figure is the unique set size (memory that no other
process shares), sampled five times a second, of the driver and of the largest worker.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _harness
import psutil

JOB = Path(__file__).parents[1] / "jobs" / "evaluate.py"


def peaks(limit: int, data: str) -> dict[str, float]:
    """Peak MiB of the driver and of the largest worker process, for ``limit`` images."""
    with tempfile.TemporaryDirectory() as output:
        flags = ["--data", data, "--split", "train", "--limit", str(limit), "--attacks", "fgsm,epsilon=0.3"]
        flags += ["--purifiers", "threshold", "--actors", "2", "--cpus-per-actor", "1", "--output", output + "/run"]
        job = subprocess.Popen([sys.executable, str(JOB), *flags], stdout=subprocess.DEVNULL)
        most = {"driver": 0.0, "worker": 0.0}
        while job.poll() is None:
            most["driver"] = max(most["driver"], _unique(psutil.Process(job.pid)))
            for process in psutil.Process(job.pid).children(recursive=True):
                if _is_worker(process):
                    most["worker"] = max(most["worker"], _unique(process))
            time.sleep(0.2)
    if job.returncode:
        raise RuntimeError(f"the evaluation of {limit} images failed with exit status {job.returncode}")
    return most


def _is_worker(process: psutil.Process) -> bool:
    try:
        return any(word.startswith("ray::") for word in process.cmdline()[:1])
    except psutil.Error:
        return False


def _unique(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().uss) / 2**20
    except psutil.Error:
        return 0.0


def main() -> None:
    """Measure and print the JSON object."""
    parser = _harness.arguments(__doc__)
    parser.add_argument("--data", default="mnist", help="dataset of 28x28 grey images")
    options = parser.parse_args()
    small, large = (1_000, 6_000) if options.quick else (10_000, 60_000)
    few, many = peaks(small, options.data), peaks(large, options.data)
    results = [
        _harness.result(
            f"peak of the {name}", "MiB", many[name], few[name], f"{small} images", large, higher_is_better=False
        )
        for name in few
    ]
    _harness.report("memory", results, packages=("torch", "ray"))


if __name__ == "__main__":
    main()
