"""Arithmetic on CPUs."""

import mmap
import subprocess
import sys

import numpy as np
import psutil

from raypurify.training.arithmetic import drop_pages

SCRIPT = """
import resource
import torch
from raypurify.training.arithmetic import compute_on_cpus

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(64 * 2**20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
compute_on_cpus(1)
faults()
print(faults())
"""


def test_a_large_tensor_takes_the_memory_of_the_one_before() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, after = map(int, ran.stdout.split())
    assert after < before / 4


def test_pages_that_are_dropped_leave_the_process_and_no_others_change() -> None:
    with mmap.mmap(-1, 64 * mmap.PAGESIZE) as shared:
        array = np.frombuffer(shared, np.uint8)
        array[:] = 7
        process = psutil.Process()
        before = process.memory_info().shared
        drop_pages(array[100:-100])
        assert before - process.memory_info().shared == 62 * mmap.PAGESIZE
        assert array.min() == 7, "pages of shared memory are still there"
        del array
