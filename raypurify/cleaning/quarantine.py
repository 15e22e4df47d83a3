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
from pathlib import Path
from typing import TYPE_CHECKING

from raypurify import storage
from raypurify.cleaning import reader
from raypurify.cleaning.plan import UnitContent

if TYPE_CHECKING:  # a child that only decodes loads no torch
    from raypurify.cleaning.cleaner import Cleaning

CULPRITS = ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGKILL", "SIGSYS", "out of memory")
"""How a fault ends a process; SIGKILL is how the system takes back memory."""
OUT_OF_MEMORY = 77
"""Exit status of a process that was given less memory than it asked for."""
DEATHS = 2
"""Workers that may end while they are at a unit before its inputs are looked at one by one."""
MOST_DEATHS = 10
"""Workers that may end at a unit: some end at the fault of another unit, or of none."""
MANY = 20
"""Inputs that may end their process before it is asked whether the model does."""


def inspect(
    unit: UnitContent, max_pixels: int, count: int | None = None, work: Cleaning | None = None
) -> tuple[dict[str, str], list[tuple[int, int, int]]]:
    """Decode a unit's inputs, or the first ``count`` of each segment of them, in a child process.

    Args:
        work: do also what follows, on a CPU, but for writing.

    Returns:
        Ids of the inputs (or of the entries) that end the process that cleans them, and how they do it; and (H, W, C)
        of each image among the others.

    Raises:
        RuntimeError: the child failed for another reason than an input, such as a store that does not answer; or so
            many inputs end it that the model must be the culprit.
    """
    killers: dict[str, str] = {}
    done = 0
    while True:
        limits = reader.Limits(max_pixels=max_pixels, killers=killers, count=count)
        child = subprocess.run(
            [sys.executable, "-m", "raypurify.cleaning.quarantine"],
            input=pickle.dumps((unit, limits, work, done)),
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        said = [json.loads(line) for line in child.stdout.decode().splitlines()]
        if child.returncode == 0:
            return killers, [tuple(word["shape"]) for word in said if word.get("shape")]
        done = max((word["done"] + 1 for word in said if "done" in word), default=done)
        begun = [word["begin"] for word in said if "begin" in word]
        how = _end(child.returncode)
        if how not in CULPRITS or not begun or begun[-1] in killers:
            raise RuntimeError(f"unit {unit.name}: its inputs can't be looked at ({how}; the lines above may say why)")
        killers[begun[-1]] = f"ends the process that cleans it ({how})"
        if work and len(killers) >= MANY and len(killers) > done / 2:
            raise RuntimeError(
                f"unit {unit.name}: {len(killers)} of its first {done + 1} inputs end the process that cleans them "
                f"({how}), so it may well be the purifier ({work.config.purifier}) or the classifier that does"
            )


def killers(work: Cleaning, unit: UnitContent, attempt: str) -> dict[str, str]:
    """Look at a unit's inputs one by one, if workers of this attempt have ended while they were at it.

    Raises:
        RuntimeError: they ended although each of its inputs can be cleaned.
    """
    url = storage.join(work.output, "starts", attempt, f"{unit.name}.json")
    starts = storage.read_json(url) if storage.exists(url) else 0
    if starts > MOST_DEATHS:
        raise RuntimeError(
            f"unit {unit.name}: its worker has ended {starts} times, but each of its inputs can be cleaned alone: "
            "is there enough memory for a worker? Ray's log of the actor says how it ended"
        )
    storage.write_json(url, starts + 1)
    if starts < DEATHS:
        return {}
    return inspect(unit, work.config.max_pixels, work=work)[0]


def is_of_machine(error: BaseException) -> bool:
    """Whether a network's failure says nothing of its images: memory has run out, or a GPU is in trouble."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which may not be loaded
        return True
    return any(said in str(error) for said in ("allocate memory", "CUDA error", "cuDNN error", "CUBLAS_STATUS"))


def _end(status: int) -> str:
    if status == OUT_OF_MEMORY:
        return "out of memory"
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def main() -> None:
    """The child: try the unit on standard input."""
    # Where the system runs out of memory, let it end this process, not the worker that waits for it.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    # What a model prints must not get among this process' own words.
    words = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**word: object) -> None:
        print(json.dumps(word), file=words, flush=True)

    unit, limits, work, done = pickle.load(sys.stdin.buffer)
    limits = dataclasses.replace(limits, announce=lambda name: say(begin=name))
    cleaner = None
    try:
        if work:
            from raypurify.cleaning.cleaner import Cleaner

            cleaner = Cleaner(work, "cpu", batch=1, threads=1)
        items = (item for segment in reader.segments(unit, limits) for item in segment.items)
        for number, item in enumerate(items):
            if cleaner and number >= done:
                cleaner.try_out(item)
            say(done=number, shape=item.picture.pixels.shape if item.picture else None)
    except Exception as error:
        if not is_of_machine(error):
            raise
        print(error, file=sys.stderr)
        os._exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
