"""Inputs that end the process that cleans them: found in a child process, one by one.

A decoder that crashes, or that takes all the memory there is, takes its worker along; so does the same input in the
next worker. When a unit has ended workers before, its inputs are first decoded, purified and encoded in a child, which
says before each what it is about to do: the last word of a child that died names the culprit, and the next child goes
on behind it. The driver, which looks at a few inputs before the work, decodes them in a child too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from raypurify.cleaning import reader
from raypurify.cleaning.base import Unit
from raypurify.cleaning.cleaner import Cleaner, Cleaning

CULPRITS = ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGKILL", "SIGSYS")
"""Signals that a fault ends a process with; SIGKILL is how the system takes back memory."""
OUT_OF_MEMORY = 77
"""Exit status of a child that was given less memory than it asked for."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a child saw of a unit."""

    killers: dict[str, str] = field(default_factory=dict)
    """Ids of the inputs (or of the entries) that end the process that cleans them, and how they do it."""
    shapes: tuple[tuple[int, int, int], ...] = ()
    """(H, W, C) of the others that are images."""


def inspect(unit: Unit, max_pixels: int, count: int | None = None, work: Cleaning | None = None) -> Findings:
    """Decode a unit's inputs, or the first ``count`` of each group of them, in a child process.

    Args:
        work: do also what follows, on a CPU, but for writing.

    Raises:
        RuntimeError: the child failed for another reason than an input, such as a store that does not answer.
    """
    killers: dict[str, str] = {}
    while True:
        limits = reader.Limits(max_pixels=max_pixels, killers=killers, count=count)
        child = subprocess.run(
            [sys.executable, "-m", "raypurify.cleaning.quarantine"],
            input=pickle.dumps((unit, limits, work)),
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        said = [json.loads(line) for line in child.stdout.decode().splitlines()]
        if child.returncode == 0:
            return Findings(killers=killers, shapes=tuple(tuple(word["shape"]) for word in said if "shape" in word))
        begun = [word["begin"] for word in said if "begin" in word]
        how = signal.Signals(-child.returncode).name if child.returncode < 0 else f"exit status {child.returncode}"
        if child.returncode == OUT_OF_MEMORY:
            how = "out of memory"
        if (child.returncode != OUT_OF_MEMORY and how not in CULPRITS) or not begun or begun[-1] in killers:
            raise RuntimeError(f"unit {unit.name}: its inputs can't be looked at ({how}; the lines above may say why)")
        killers[begun[-1]] = f"ends the process that cleans it ({how})"


def main() -> None:
    """The child: try the unit on standard input."""
    _be_first_to_go()
    unit, limits, work = pickle.load(sys.stdin.buffer)
    limits = dataclasses.replace(limits, announce=lambda name: print(json.dumps({"begin": name}), flush=True))
    cleaner = Cleaner(work, "cpu", batch=1, threads=1) if work else None
    try:
        for group in reader.groups(unit, limits):
            for item in group.inputs:
                if item.picture is not None:
                    print(json.dumps({"shape": item.picture.pixels.shape}), flush=True)
                if cleaner:
                    cleaner.try_out(item)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def _be_first_to_go() -> None:
    """Where the system runs out of memory, let it end this process, not the worker that waits for it."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main()
