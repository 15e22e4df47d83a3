"""What the workers of a cluster lack, and the driver has, is told in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT, ray_head
from fault_proxy import Faults
from servers import faulty

from raypurify import storage
from raypurify.images import encode_png

WITHOUT_PACKAGE = """
import sys
from pathlib import Path

sys.path[:] = [folder for folder in sys.path if not Path(folder, "raypurify").is_dir()]
"""
"""What takes this project off the path of each Python process that starts."""


@pytest.fixture(scope="module")
def bare_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A cluster whose workers find no package of this project; the environment of a driver that does."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(WITHOUT_PACKAGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        with ray_head(4, folder / "log") as head:
            yield {**head, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": head["GCS_ADDRESS"]}


def job(environment: Mapping[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A job whose driver is here, in a folder that Ray may put on the path of workers."""
    command = [sys.executable, "-c", "from raypurify.command.main import main; main()", *words]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def evaluation(classifier: str) -> list[str]:
    return ["evaluate", "--data", "digits", "--limit", "40", "--classifiers", classifier, "--attacks", "none"]


TRAINING = ["train", "digits", "--data", "digits", "--model", "a_net", "--classifier", "None", "--batch", "32"]
TRAINING += ["--epochs", "1", "--validation", "0"]


@pytest.mark.parametrize("verb", ["evaluate", "train"])
def test_workers_without_the_package(
    verb: str, bare_head: dict[str, str], small_classifier: str, tmp_path: Path
) -> None:
    words = evaluation(small_classifier) if verb == "evaluate" else TRAINING
    done = job(bare_head, tmp_path, *words, "--output", str(tmp_path / "run"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: workers of this cluster cannot import raypurify")
    assert "ray job submit --working-dir ." in done.stderr


@pytest.fixture(scope="module")
def images(s3: str) -> str:
    """A small dataset in a bucket."""
    rows = [
        {"image": encode_png(np.full((28, 28, 1), 20 * (row % 10), np.uint8)), "label": row % 10} for row in range(80)
    ]
    for split in ("train", "test"):
        storage.write_table(f"{s3}/lacking/{split}.parquet", pa.Table.from_pylist(rows))
    return f"{s3}/lacking"


@pytest.mark.slow
@pytest.mark.parametrize("key", ["WORKERS", ""])
def test_workers_whom_the_store_denies(key: str, s3: str, images: str, small_classifier: str, tmp_path: Path) -> None:
    with faulty(Faults(keys=("WORKERS",))), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("AWS_ACCESS_KEY_ID", key)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        if not key:
            patch.delenv("AWS_ACCESS_KEY_ID")
            patch.delenv("AWS_SECRET_ACCESS_KEY")
        with ray_head(4, tmp_path / "log") as head:
            keys = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests"}
            driver = {**head, **keys, "RAY_ADDRESS": head["GCS_ADDRESS"]}
            for number, words in enumerate((evaluation(small_classifier), [*TRAINING])):
                words[words.index("--data") + 1] = images
                done = job(driver, tmp_path, *words, "--output", f"{s3}/denied{key}/{number}")
                assert done.returncode == 1
                (line,) = done.stderr.splitlines()
                assert ("access is denied" if key else "no credentials to use") in line
                assert "A worker was refused it" in line


def test_a_gpu_that_the_cluster_lacks(bare_head: dict[str, str], small_classifier: str, tmp_path: Path) -> None:
    for words in ([*evaluation(small_classifier), "--gpus-per-actor", "1"], [*TRAINING, "--use-gpu"]):
        done = job(bare_head, tmp_path, *words, "--output", str(tmp_path / "run"))
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert "and 0 GPU(s)" in line
        assert not (tmp_path / "run/run.json").exists()
