"""How an actor or a worker computes on CPUs."""

from __future__ import annotations

import ctypes
import sys

import torch

KEPT_BYTES = 256 * 2**20
"""Tensors up to this size take memory that was freed before, of which a process keeps so much."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's malloc.h."""


def on_cpus(threads: int) -> None:
    """Let this process compute with so many threads, in memory that it keeps.

    By itself glibc gives a freed tensor of over 32 MiB back to the kernel, which clears every page of the next one. In
    an attack on 250 MNIST images that takes a third of the time. C libraries without ``mallopt`` are left alone.
    """
    torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
