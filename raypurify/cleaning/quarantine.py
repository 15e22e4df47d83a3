"""Inputs that end the process that decodes them: found in a child process, one by one.

A decoder that crashes, or that takes all the memory there is, takes its worker along; so does the same input in the
next worker. When a unit has ended workers before, its inputs are first decoded in a child, which says before each what
it is about to do: the last word of a child that died names the culprit, and the next child goes on behind it.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import signal
import subprocess
import sys

from raypurify.cleaning import reader
from raypurify.cleaning.base import Unit


def killers(unit: Unit, max_pixels: int) -> dict[str, str]:
    """Ids of the unit's inputs that end the process that decodes them, and how they do it."""
    found: dict[str, str] = {}
    while True:
        child = subprocess.run(
            [sys.executable, "-m", "raypurify.cleaning.quarantine"],
            input=pickle.dumps((unit, reader.Limits(max_pixels=max_pixels, killers=found))),
            stdout=subprocess.PIPE,
        )
        if child.returncode == 0:
            return found
        announced = child.stdout.decode().splitlines()
        culprit = json.loads(announced[-1]) if announced else None
        if culprit is None or culprit in found:
            raise RuntimeError(f"unit {unit.name}: its inputs can't be read (exit status {child.returncode})")
        found[culprit] = f"ends the process that decodes it ({_how(child.returncode)})"


def _how(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def main() -> None:
    """The child: decode each input of the unit on standard input."""
    unit, limits = pickle.load(sys.stdin.buffer)
    limits = dataclasses.replace(limits, announce=lambda name: print(json.dumps(name), flush=True))
    for group in reader.groups(unit, limits):
        for _ in group.inputs:
            pass


if __name__ == "__main__":
    main()
