"""The planning table follows from its figures, and the README shows it."""

import dataclasses
import runpy
import subprocess
import sys
from types import SimpleNamespace

import pytest
from job_lines import ROOT

costs = SimpleNamespace(**runpy.run_path(str(ROOT / "cluster/costs.py")))


def test_the_readme_has_the_table() -> None:
    done = subprocess.run([sys.executable, ROOT / "cluster/costs.py"], check=True, capture_output=True, text=True)
    assert done.stdout in (ROOT / "cluster/README.md").read_text()
    half = [sys.executable, ROOT / "cluster/costs.py", "--machines", "16", "--spot", "0.5", "--cpu-price", "1"]
    assert "| job | on 16 machines of |" in subprocess.run(half, check=True, capture_output=True, text=True).stdout


def test_a_plan_multiplies() -> None:
    work = costs.Work(name="", images=3600, network=0.5, multiplications=1e9, files=0.5, gets=1, puts=2)
    cores = costs.Machine(name="", price=2, cpus=4)
    plan = costs.planned(work, cores, 5, head=1, spot=0.5)
    assert plan.images_per_second == pytest.approx(5 * 4 * costs.EFFICIENCY)
    assert plan.hours == pytest.approx(1 / (20 * costs.EFFICIENCY) + costs.BOOT)
    assert plan.machines == pytest.approx(plan.hours * (5 * 2 * 0.5 + 1))
    assert plan.requests == pytest.approx(3600 * (costs.GET + 2 * costs.PUT))


@pytest.mark.parametrize(("multiplications", "seconds"), [(1e9, 0.125), (1e12, 1.0)])
def test_the_slower_of_gpu_and_files_tells_a_machines_rate(multiplications: float, seconds: float) -> None:
    work = costs.Work(name="", images=1, network=9, multiplications=multiplications, files=0.5, gets=0, puts=0)
    machine = costs.Machine(name="", price=1, cpus=4, gpu=1e12)
    assert work.machine_seconds(machine) == pytest.approx(seconds)
    assert work.machine_seconds(dataclasses.replace(machine, gpu=0)) == pytest.approx(9.5 / 4)
