"""What a unit of work costs the driver: an evaluation and a cleaning of tiny images in 1,000 units, on one node.

Each job runs in a fresh process with a Ray of its own, with a quarter of the units and with all of them; a unit's cost
is the difference by their number. Measured are the driver's CPU time, and the memory that no other process shares
(unique set size) of the driver and of Ray's control store, at their peaks.

The baseline is what a head of one core and 16 GiB has for each of 1,000,000 units in a day: where the ratio is below 1,
a million units are too many for it.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import _harness
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from cleaning import pictures

import raypurify

ROWS = 500
"""Images of an evaluation's unit."""
MILLION = 1_000_000
GIB_16 = (16 << 20) / MILLION
COSTS = {
    "cpu": ("the driver's CPU time", "ms", 1000 * 86_400 / MILLION, "a core's day"),
    "driver": ("the driver's memory", "KiB", GIB_16, "16 GiB"),
    "store": ("the control store's memory", "KiB", GIB_16, "16 GiB"),
}
"""What is measured, its unit, what a head has of it for each of a million units, and in what words."""


def evaluation(units: int, folder: str) -> None:
    """Evaluate images of 8x8."""
    raypurify.evaluate(
        data=f"scaling:images,rows={units * ROWS}",
        classifiers=["scaling:Linear"],
        attacks=["none"],
        actors=1,
        batch=ROWS,
        output=f"{folder}/run",
    )


def cleaning(units: int, folder: str) -> None:
    """Clean Parquet files of two images of 8x8, each of which is a unit."""
    (Path(folder) / "in").mkdir()
    table = pa.table({"image": [{"bytes": image, "path": None} for image in pictures(2, 8)]})
    for number in range(units):
        pq.write_table(table, f"{folder}/in/{number:07d}.parquet")
    raypurify.clean(input=f"{folder}/in", purifier="identity", actors=1, output=f"{folder}/run")


JOBS: dict[str, Callable[[int, str], None]] = {"evaluation": evaluation, "cleaning": cleaning}


def once(job: str, units: int) -> dict[str, float]:
    """What a job of so many units takes in all, in this process: CPU milliseconds, and seconds of the clock."""
    ray.init("local", num_cpus=3, include_dashboard=False, logging_level=logging.ERROR, object_store_memory=200 << 20)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        cpu, started = time.process_time(), time.perf_counter()
        JOBS[job](units, folder)
    return {"cpu": 1000 * (time.process_time() - cpu), "seconds": time.perf_counter() - started}


def main() -> None:
    """Measure and print the JSON object."""
    parser = _harness.arguments(__doc__)
    parser.add_argument("--units", type=int, default=1000, help="units of the larger run of each job")
    parser.add_argument("--once", choices=JOBS, help="run this job alone, and print what it costs in all")
    options = parser.parse_args()
    if options.once:
        print(json.dumps(once(options.once, options.units)))
        return
    _harness.share_modules()
    units = 200 if options.quick else options.units
    results = [result for job in JOBS for result in results_of(job, units)]
    _harness.report("units", results, packages=("torch", "ray"))


def results_of(job: str, units: int) -> list[dict[str, Any]]:
    """What a unit of a job costs."""
    fewer = units // 4
    few, many = costs(job, fewer), costs(job, units)
    each = {name: (many[name] - few[name]) / (units - fewer) for name in many}
    return [
        _harness.result(
            f"{job}: {title} a unit",
            unit,
            max(each[name], 1e-3),
            baseline,
            f"{words} for a million units",
            units,
            higher_is_better=False,
            of_all_units=many[name],
            seconds_a_unit=each["seconds"],
        )
        for name, (title, unit, baseline, words) in COSTS.items()
    ]


def costs(job: str, units: int) -> dict[str, float]:
    """:func:`once`, in a process of its own, with the KiB of it and of Ray's control store at their peaks."""
    command = [sys.executable, __file__, "--once", job, "--units", str(units)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peaks = {"driver": 0.0, "store": 0.0}
    while process.poll() is None:
        driver = psutil.Process(process.pid)
        with suppress(psutil.Error):
            stores = [child for child in driver.children() if child.name() == "gcs_server"]
            for name, watched in zip(peaks, [driver, *stores], strict=False):
                peaks[name] = max(peaks[name], watched.memory_full_info().uss / 1024)
        time.sleep(0.2)
    told = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"{job} of {units} units failed with exit status {process.returncode}")
    return {**json.loads(told.splitlines()[-1]), **peaks}


if __name__ == "__main__":
    main()
