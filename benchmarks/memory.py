"""Peak memory of the driver and the workers: evaluations of 10,000 images and 60,000, cleanings of 5,000 and 50,000.

A cleaning is of 32x32 images in Parquet on the local disk, by a median filter. Each job runs in a fresh process with a
Ray of its own. The figure is the unique set size (memory that no other process shares), sampled five times a second, of
the driver and of the largest worker.

Whether a cleaning's time is linear is told by the timelines of three more runs, without the sampling: past the first
fifth, in which Ray's own processes still start, the next two fifths are held against the last two.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _harness
import numpy as np
import psutil
from cleaning import ROWS, parquet

JOBS = Path(__file__).parents[1] / "jobs"


def evaluation(limit: int, data: str) -> dict[str, float]:
    """Peaks of memory when ``limit`` images are evaluated."""
    flags = ["--data", data, "--split", "train", "--limit", str(limit), "--attacks", "fgsm,epsilon=0.3"]
    return peaks("evaluate.py", [*flags, "--purifiers", "threshold"])


def cleaning(limit: int, folder: str) -> dict[str, float]:
    """Peaks of memory when ``limit`` images are cleaned."""
    return peaks("clean.py", ["--input", folder, "--purifier", "median_filter", "--limit", str(limit // ROWS)])


def fifths(folder: str, count: int) -> tuple[float, float]:
    """Seconds that a cleaning of ``count`` images takes for the second and third fifth, and for the last two."""
    with tempfile.TemporaryDirectory() as output:
        subprocess.run(
            command("clean.py", ["--input", folder, "--purifier", "median_filter"], output),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        timeline = json.loads(Path(output, "run", "run.json").read_text())["attempts"][0]["counts"]["timeline"]
    seconds, done = zip(*timeline, strict=True)
    start, middle, end = np.interp([count / 5, count * 3 / 5, count], done, seconds)
    return float(middle - start), float(end - middle)


def command(job: str, flags: list[str], output: str) -> list[str]:
    """A job on two one-CPU actors, into ``OUTPUT/run``."""
    pool = ["--actors", "2", "--cpus-per-actor", "1", "--output", output + "/run"]
    return [sys.executable, str(JOBS / job), *flags, *pool]


def peaks(job: str, flags: list[str]) -> dict[str, float]:
    """Peak MiB of a job's driver and of its largest worker."""
    with tempfile.TemporaryDirectory() as output:
        process = subprocess.Popen(command(job, flags, output), stdout=subprocess.DEVNULL)
        most = {"driver": 0.0, "worker": 0.0}
        while process.poll() is None:
            most["driver"] = max(most["driver"], _unique(psutil.Process(process.pid)))
            for child in psutil.Process(process.pid).children(recursive=True):
                if _is_worker(child):
                    most["worker"] = max(most["worker"], _unique(child))
            time.sleep(0.2)
        if process.returncode:
            raise RuntimeError(f"{job} {' '.join(flags)} failed with exit status {process.returncode}")
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
    results = []
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"evaluation": (1_000, 6_000), "cleaning": (500, 5_000)}
        if not options.quick:
            sizes = {"evaluation": (10_000, 60_000), "cleaning": (5_000, 50_000)}
        images = parquet(folder, sizes["cleaning"][1], 32)
        for job, run, data in (("evaluation", evaluation, options.data), ("cleaning", cleaning, images)):
            small, large = sizes[job]
            few, many = run(small, data), run(large, data)
            if job == "cleaning":
                seconds = np.median([fifths(data, large) for _ in range(3)], axis=0)
                results.append(
                    _harness.result(
                        "cleaning: the last two fifths of the images",
                        "s",
                        float(seconds[1]),
                        float(seconds[0]),
                        "the two before",
                        large * 2 // 5,
                        higher_is_better=False,
                    )
                )
            results += [
                _harness.result(
                    f"{job}: peak of the {name}",
                    "MiB",
                    many[name],
                    few[name],
                    f"{small} images",
                    large,
                    higher_is_better=False,
                )
                for name in few
            ]
    _harness.report("memory", results, packages=("torch", "ray"))


if __name__ == "__main__":
    main()
