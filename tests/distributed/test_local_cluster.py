"""``cluster/local.py``: a cluster that grows under a job, shrinks after it, survives a lost node, and ends."""

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT, wait_for

from raypurify import storage
from raypurify.evaluation import results
from raypurify.images import encode_png
from raypurify.runs import schema

pytestmark = pytest.mark.slow
NODES = ["--cpu-nodes", "2", "--cpus", "1", "--idle", "5"]


@contextlib.contextmanager
def local_cluster(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``cluster/local.py`` with a command; afterwards nothing of it is left."""
    words = [sys.executable, str(ROOT / "cluster/local.py"), *NODES, "--", *command]
    with log.open("wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file)
    started: set[psutil.Process] = set()
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            started = set(psutil.Process(process.pid).children(recursive=True))
        process.terminate()
        process.wait(90)
        for each in psutil.wait_procs(started, timeout=10)[1]:
            each.kill()


def evaluation(classifier: str, purifier: str, output: Path, *flags: str) -> list[str]:
    words = ["--data", "digits", "--split", "train", "--classifiers", classifier, "--purifiers", purifier]
    words += ["--attacks", "pgd,epsilon=0.1,steps=20", "--batch", "50", "--output", str(output)]
    return [sys.executable, str(ROOT / "jobs/evaluate.py"), *words, *flags]


def scores(output: Path) -> dict[str, list[object]]:
    (cell,) = storage.read_table(f"{output}/cells.parquet")["cell"].to_pylist()
    return results.read_scores(str(output), cell, schema.SCORES.names).sort_by("id").to_pydict()


def node_counts(log: Path) -> list[str]:
    """What was printed of the nodes, in turn."""
    return re.findall(r"^\[\d+ s\] nodes: (.*)$", log.read_text(), re.MULTILINE)


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def lose_a_node(process: subprocess.Popen[bytes]) -> None:
    """Kill the node that came last, and what runs on it dies with it."""
    raylets = [each for each in children(process) if each.name() == "raylet"]
    assert len(raylets) == 3
    max(raylets, key=psutil.Process.create_time).kill()


@pytest.fixture(scope="module")
def undisturbed(
    small_classifier: str, small_purifier: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[object]]:
    """What one process finds, without Ray."""
    output = tmp_path_factory.mktemp("runs") / "undisturbed"
    command = evaluation(small_classifier, small_purifier, output, "--local", "--actors", "1")
    subprocess.run(command, check=True)
    return scores(output)


def test_it_grows_from_a_head_alone_shrinks_and_ends_on_ctrl_c(
    undisturbed: dict[str, list[object]], small_classifier: str, small_purifier: str, tmp_path: Path
) -> None:
    output, log = tmp_path / "run", tmp_path / "log"
    job = subprocess.list2cmdline(evaluation(small_classifier, small_purifier, output, "--actors", "2"))
    with local_cluster(["sh", "-c", f"{job} && exec sleep 300"], log) as process:
        wait_for(lambda: storage.is_success(str(output)), 240, "end of the evaluation")
        wait_for(lambda: node_counts(log)[-1] == "1 head", 120, "end of the idle nodes")
        started = children(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert not psutil.wait_procs(started, timeout=5)[1]
    counts = node_counts(log)
    assert counts[0] == "1 head"
    assert "1 head, 2 cpu" in counts
    assert "waiting for the cluster to grow" in log.read_text()
    assert scores(output) == undisturbed


@pytest.mark.parametrize(
    ("flags", "lacks"),
    [(["--gpus-per-actor", "1"], "Give --gpus-per-actor 0"), (["--cpus-per-actor", "4"], "room for 0, and its")],
)
def test_what_no_machine_of_the_autoscaler_has_is_refused(
    flags: list[str], lacks: str, small_classifier: str, small_purifier: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    command = evaluation(small_classifier, small_purifier, tmp_path / "run", "--actors", "1", *flags)
    with local_cluster(command, log) as process:
        assert process.wait(120) == 2
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert "and its autoscaler has no machine that one of them fits on" in line
    assert lacks in line


def test_a_job_survives_a_node_that_is_lost(
    undisturbed: dict[str, list[object]], small_classifier: str, small_purifier: str, tmp_path: Path
) -> None:
    output, log = tmp_path / "run", tmp_path / "log"
    with local_cluster(evaluation(small_classifier, small_purifier, output, "--actors", "2"), log) as process:
        wait_for(lambda: "1 head, 2 cpu" in node_counts(log), 240, "second node")
        wait_for(lambda: list(output.glob("scores/*/*.parquet")), 240, "first unit")
        lose_a_node(process)
        assert not storage.is_success(str(output))
        assert process.wait(300) == 0, log.read_text()[-3000:]
    assert scores(output) == undisturbed


def test_a_training_survives_a_node_that_is_lost(tmp_path: Path) -> None:
    output, alone, log = tmp_path / "run", tmp_path / "alone", tmp_path / "log"
    words = [sys.executable, str(ROOT / "jobs/train_mnist.py"), "--data", "digits", "--model", "a_net"]
    words += ["--classifier", "None", "--augmentation", "none", "--precision", "float32", "--rate", "1e-4"]
    words += ["--epochs", "20", "--batch", "64", "--limit", "800", "--validation", "100", "--cpus-per-worker", "1"]
    snapshot = output / "checkpoints/checkpoint_manager_snapshot.json"
    subprocess.run([*words, "--local", "--output", str(alone)], check=True)
    with local_cluster([*words, "--workers", "2", "--output", str(output)], log) as process:
        wait_for(lambda: "1 head, 2 cpu" in node_counts(log), 240, "second node")
        wait_for(lambda: snapshot.exists() and "checkpoint_2" in snapshot.read_text(), 240, "checkpoint in Ray's list")
        lose_a_node(process)
        assert not storage.is_success(str(output))
        assert process.wait(400) == 0, log.read_text()[-3000:]
    assert "going on from epoch " in log.read_text()
    curve, expected = (storage.read_table(f"{run}/metrics.parquet") for run in (output, alone))
    assert curve["step"].to_pylist() == expected["step"].to_pylist()
    # Far above what rounding changes, for it falls slowly.
    np.testing.assert_allclose(curve["loss"].to_numpy(), expected["loss"].to_numpy(), rtol=0.02)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two sizes, of which every hundredth is cut off."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for index in range(2000):
        data = encode_png(generator.integers(0, 256, (40 + index % 2, 40, 1), dtype=np.uint8))
        (folder / f"{index:04d}.png").write_bytes(data if index % 100 else data[: len(data) // 2])
    return folder


def cleaned(output: Path) -> tuple[dict[str, bytes], list[dict[str, object]]]:
    """The images by name, and the rows of manifest and rejects, which have to name each input once."""
    urls = [*output.glob("manifest/*.parquet"), *output.glob("rejects/*.parquet")]
    rows = [row for url in urls for row in storage.read_table(str(url)).to_pylist()]
    for row in rows:
        row["output"] = row.get("output", "").removeprefix(str(output))
    rows.sort(key=lambda row: row["id"])
    assert [row["id"] for row in rows] == [f"{index:04d}.png" for index in range(2000)]
    return {path.name: path.read_bytes() for path in output.glob("images/*")}, rows


def test_a_cleaning_survives_a_node_that_is_lost(small_purifier: str, pictures: Path, tmp_path: Path) -> None:
    output, alone, log = tmp_path / "run", tmp_path / "alone", tmp_path / "log"
    words = [sys.executable, str(ROOT / "jobs/clean.py"), "--input", str(pictures), "--purifier", small_purifier]
    words += ["--batch", "50"]
    subprocess.run([*words, "--local", "--actors", "1", "--output", str(alone)], check=True)
    with local_cluster([*words, "--actors", "2", "--output", str(output)], log) as process:
        wait_for(lambda: "1 head, 2 cpu" in node_counts(log), 240, "second node")
        wait_for(lambda: list(output.glob("images/*")), 240, "first image")
        lose_a_node(process)
        assert not storage.is_success(str(output))
        assert process.wait(400) == 0, log.read_text()[-3000:]
    assert cleaned(output) == cleaned(alone)
    assert len(storage.read_json(f"{output}/run.json")["attempts"]) == 1


def test_its_exit_status_is_the_commands(tmp_path: Path) -> None:
    with local_cluster(["sh", "-c", "exit 7"], tmp_path / "log") as process:
        assert process.wait(90) == 7
