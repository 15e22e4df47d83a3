"""What every benchmark shares: its arguments, timing in turns, and the JSON object that is its last line."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The parser of a benchmark's command line: it has ``--quick``, and a benchmark may add to it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer turns: under a minute")
    return parser


def seconds_in_turns(contestants: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Wall seconds of each contestant in each turn, so that a slow minute of the machine meets them all.

    A turn beforehand, untimed, pays for caches and threads.
    """
    for run in contestants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_rate(n: int, seconds: Sequence[float]) -> float:
    """Items a second: n over the median of the turns."""
    return n / statistics.median(seconds)


def result(
    name: str,
    unit: str,
    ours: float,
    baseline: float,
    baseline_name: str,
    n: int,
    *,
    higher_is_better: bool = True,
    **extra: Any,
) -> dict[str, Any]:
    """One measurement. ``ratio`` is above 1 when ours is better; ``n`` is the number of items that a turn measured."""
    ratio = ours / baseline if higher_is_better else baseline / ours
    measured = {"ours": ours, "baseline": baseline, "baseline_name": baseline_name, "ratio": ratio, "n": n}
    return {"name": name, "unit": unit, **measured, **extra}


def share_modules() -> None:
    """Let processes that are started from here import the benchmarks' modules by their names."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])


def machine() -> dict[str, Any]:
    """The hardware that this process may use. ``memory_gib`` is the whole machine's."""
    import torch

    return {
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "platform": platform.platform(),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of the named distributions.

    Raises:
        importlib.metadata.PackageNotFoundError: one is not installed.
    """
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def report(benchmark: str, results: Sequence[Mapping[str, Any]], packages: Sequence[str] = ("torch",)) -> None:
    """Print a line for each result, and last the JSON object."""
    for row in results:
        ours, baseline = (f"{row[side]:,.{1 if row[side] >= 100 else 3}f}" for side in ("ours", "baseline"))
        measured = f"{ours} against {baseline} {row['unit']} of {row['baseline_name']}"
        print(f"{row['name']}: {measured}, ratio {row['ratio']:.2f}")
    whole = {"benchmark": benchmark, "machine": machine(), "versions": versions(*packages), "results": list(results)}
    print(json.dumps(whole), flush=True)
