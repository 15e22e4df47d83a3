"""Signed URLs and passwords of inputs, on a real Ray: in the plan, and in no other file, line or log."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from servers import SIGNATURE, USER, WORD, files_with, guarded_web

from raypurify.images import encode_png

JOBS = """
import json, runpy, sys
for job, flags in json.loads(sys.argv.pop()):
    sys.argv = [f"jobs/{job}.py", *flags]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        print(job, "ended with", ended.code)
"""
"""Jobs one after the other in one process, on one Ray."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A guarded server of images, and of Parquet files of which one has damaged pages."""
    folder = tmp_path / "web"
    folder.mkdir()
    generator = np.random.default_rng(0)
    digits = [encode_png(generator.integers(0, 256, (28, 28, 1), dtype=np.uint8)) for _ in range(120)]
    table = pa.table({"image": digits, "label": np.arange(120) % 10})
    pq.write_table(table, folder / "train.parquet")
    data = (folder / "train.parquet").read_bytes()
    (folder / "damaged.parquet").write_bytes(data[:400] + bytes(2000) + data[2400:])
    (folder / "a.png").write_bytes(digits[0])
    (folder / "broken.png").write_bytes(digits[0][:40])
    with guarded_web(folder) as host:
        yield host


def test_secrets_of_urls_are_in_no_log_of_ray(web: str, tmp_path: Path, small_classifier: str) -> None:
    names = ("a.png", "broken.png", "gone.png", "gone.tar", "train.parquet", "damaged.parquet")
    named = f"http://{USER}:{WORD}@{web.replace('127.0.0.1', 'localhost')}"
    signed = [f"http://{web}/{name}?sig={SIGNATURE}" for name in names]
    (tmp_path / "list.txt").write_text("\n".join([*signed, *(f"{named}/{name}" for name in names)]))
    training = ["--model", "a_net", "--classifier", "None", "--epochs", "1", "--batch", "32", "--validation", "0"]
    evaluation = ["--classifiers", small_classifier, "--purifiers", "identity", "--attacks", "none"]
    evaluation += ["--settings", "white-box", "--split", "train"]
    pool = ["--actors", "1", "--cpus-per-actor", "1"]
    jobs = [
        ("clean", ["--input", f"{tmp_path}/list.txt", "--purifier", "identity", "--max-rejects", "1", *pool]),
        ("train_mnist", ["--data", f"http://{web}/train.parquet?sig={SIGNATURE}", *training, "--cpus-per-worker", "1"]),
        ("train_mnist", ["--data", f"{named}/damaged.parquet", *training, "--cpus-per-worker", "1"]),
        ("evaluate", ["--data", f"http://{web}/damaged.parquet?sig={SIGNATURE}", *evaluation, *pool]),
    ]
    jobs = [(job, [*flags, "--output", f"{tmp_path}/out/{number}"]) for number, (job, flags) in enumerate(jobs)]
    temporary = Path(tempfile.mkdtemp(prefix="r"))  # short, for sockets
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    try:
        done = subprocess.run(
            [sys.executable, "-c", JOBS, json.dumps(jobs)],
            env={**environment, "RAY_TMPDIR": str(temporary)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        assert (done.returncode, said.count("ended with")) == (0, 2), said
        assert [*temporary.rglob("worker-*.err")]
        for secret in (WORD, SIGNATURE):
            assert secret not in said
            assert files_with(secret, temporary) == []
            found = files_with(secret, tmp_path / "out")
            assert found
            assert all(name.partition("plan/")[1] for name in found), found
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
