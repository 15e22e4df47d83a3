"""Arithmetic on CPUs."""

import subprocess
import sys

SCRIPT = """
import resource
import torch
from raypurify.distributed.arithmetic import compute_on_cpus

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
    assert after < before / 100
