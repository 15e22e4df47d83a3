"""Threads and memory of the processes that compute on CPUs, and of those that read."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np

KEPT_BYTES = 256 * 2**20
"""Tensors up to this size take memory that was freed before, of which a process keeps so much."""
RETURNED_BYTES = 256 * 2**10
"""Memory of this size and more goes back to the system at once, in a process that reads."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's malloc.h."""
MADV_DONTNEED = 4
"""Number of Linux' sys/mman.h."""


def compute_on_cpus(threads: int) -> None:
    """Let this process compute with so many threads, in memory that it keeps.

    By itself glibc gives a freed tensor of over 32 MiB back to the kernel, which clears every page of the next one. In
    an attack on 250 MNIST images that takes a third of the time.
    """
    import torch  # those that read have none

    torch.set_num_threads(threads)
    _mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    _mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def return_freed_memory() -> None:
    """Let this process give the memory of decoded images back when they are freed.

    By itself glibc keeps up to 64 MiB of it for each of many threads.
    """
    _mallopt(M_MMAP_THRESHOLD, RETURNED_BYTES)


def drop_pages(array: np.ndarray) -> None:
    """Take the pages of an array that nobody reads any more out of this process; its contents are lost.

    A process counts each page of the object store that it has touched, also long after the object is gone.
    """
    start = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (array.ctypes.data + array.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if sys.platform == "linux" and array.flags.c_contiguous and size > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), MADV_DONTNEED)


def _mallopt(parameter: int, value: int) -> None:
    """Set a parameter of glibc's memory; other C libraries are left alone."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(parameter, value)
