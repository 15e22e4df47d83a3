"""What reaches the terminal of a job on Ray: its own lines, and of a failure one that names the traceback's file."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from conftest import ROOT, wait_for

PLUGINS = """
import time
import torch

class Fails(torch.nn.Module):
    def forward(self, x):
        if x.mean() > 0:
            raise KeyError("no such place")
        return x

class Slow(torch.nn.Module):
    def forward(self, x):
        print("seen")
        time.sleep(0.6 if x.mean() > 0 else 0.0)
        return x
"""


def job(tmp_path: Path, classifier: str, purifier: str, *flags: str) -> subprocess.Popen[str]:
    (tmp_path / "own_plugins.py").write_text(PLUGINS)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT)])
    words = ["--data", "digits", "--limit", "80", "--classifiers", classifier, "--purifiers", f"own_plugins:{purifier}"]
    words += ["--attacks", "none", "--actors", "2", "--batch", "8", "--output", str(tmp_path / "run")]
    command = [sys.executable, str(ROOT / "jobs/evaluate.py"), *words, *flags]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_plugin_that_raises_in_a_worker_is_told_in_one_line_of_json(small_classifier: str, tmp_path: Path) -> None:
    process = job(tmp_path, small_classifier, "Fails", "--log-format", "json")
    said, failed = process.communicate(timeout=240)
    assert process.returncode == 1, said + failed
    (kept,) = (tmp_path / "run/errors").iterdir()
    lines = [json.loads(line) for line in (said + failed).splitlines()]
    assert all(line["job"] == "evaluate" and line["output"] == str(tmp_path / "run") for line in lines)
    (line,) = [line for line in lines if line["level"] == "error"]
    assert line["message"].startswith("digits#")
    assert line["message"].endswith(f"(8 images): KeyError: 'no such place'. The traceback is in {kept}")
    assert line["exit_code"] == 1
    text = kept.read_text()
    assert "own_plugins.py" in text
    assert "KeyError: 'no such place'" in text
    assert not any(noise in said + failed for noise in ("pid=", "Traceback", ".cc:", "raylet"))


def test_a_worker_that_dies_leaves_the_terminal_to_the_job(small_classifier: str, tmp_path: Path) -> None:
    process = job(tmp_path, small_classifier, "Slow")
    scores = tmp_path / "run/scores"
    wait_for(lambda: process.poll() is not None or list(scores.glob("*/*.parquet")), 240, "first unit")
    assert process.poll() is None, process.communicate()
    names = [(child, " ".join(child.cmdline())) for child in psutil.Process(process.pid).children(recursive=True)]
    next(child for child, name in names if name.startswith("ray::MapWorker")).send_signal(signal.SIGKILL)
    said, noted = process.communicate(timeout=240)
    assert process.returncode == 0, said + noted
    assert "seen\n" in said  # what a plugin prints is the user's own
    assert not said.endswith("\n\n"), "Ray's last message has no lines"
    assert not any(noise in said + noted for noise in ("pid=", "Traceback", ".cc:", "raylet"))
    assert all(line.startswith(("evaluating: ", "writing samples: ")) for line in noted.splitlines()), noted
