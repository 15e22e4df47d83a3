"""The jobs as users run them: submitted to a cluster through its dashboard, and with mistakes."""

import io
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import RAY, ROOT, end_session, ray_head, wait_for
from PIL import Image

from raypurify import storage
from raypurify.jobs.resources import TrainingResources
from raypurify.jobs.train import train
from raypurify.runs import schema
from raypurify.training.config import TrainingConfig


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with ray_head(4, tmp_path_factory.mktemp("head") / "log") as environment:
        yield environment


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Small colour images in the layout of the Hugging Face hub: each class is of a colour of its own."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for split, count in (("train", 160), ("test", 40)):
        rows = []
        for number in range(count):
            pixels = rng.integers(0, 80, (32, 32, 3))
            pixels[..., number % 3] += 120
            buffer = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
            rows.append({"img": {"bytes": buffer.getvalue(), "path": f"{number}.png"}, "label": number % 3})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def submission(*words: str, folder: str = ".") -> list[str]:
    return [str(RAY), "job", "submit", "--working-dir", folder, "--", "python", *words]


def submit(head: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(submission(*words), env=head, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def refused(
    head: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, subprocess.Popen[str]]]:
    """Submissions that fail, all begun at once."""
    output = str(tmp_path_factory.mktemp("refused") / "run")
    submissions = {
        "untrained": submission("jobs/evaluate.py", "--data", "digits", "--classifiers", "a_net", "--output", output),
        "no output": submission("jobs/attack.py", "--input", "digits"),
        "no folder": submission("jobs/evaluate.py", folder="nowhere"),
        "no checkout": submission("jobs/evaluate.py", folder="docs"),
    }
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = {
        name: subprocess.Popen(command, env=head, cwd=ROOT, text=True, **streams)
        for name, command in submissions.items()
    }
    yield processes
    for process in processes.values():
        process.kill()
        process.wait()


def test_training_and_evaluation_are_submitted_to_a_cluster(
    head: dict[str, str], photographs: str, tmp_path: Path
) -> None:
    classifier, purifier, output = (str(tmp_path / name) for name in ("m_net", "cru_net", "evaluation"))
    small = ["--data", photographs, "--epochs", "1", "--batch", "32", "--validation", "0", "--cpus-per-worker", "1"]
    training = TrainingConfig(data=photographs, model="m_net", epochs=1, batch=32, validation=0)
    train(training, TrainingResources(cpus_per_worker=1, local=True), classifier)
    done = submit(
        head,
        *("jobs/train_cifar.py", *small, "--model", "cru_net,width=4", "--classifier", f"{classifier}/model"),
        *("--attacks", "fgsm,epsilon=0.03", "--workers", "2", "--output", purifier),
    )
    assert done.returncode == 0, done.stdout[-3000:]
    config = tmp_path / "evaluation.yaml"
    config.write_text(f"data: {photographs}\nclassifiers: [{classifier}/model]\ncpus_per_actor: 1\n")
    done = submit(
        head,
        *("jobs/evaluate.py", "--config", str(config), "--purifiers", f"{purifier}/model", "identity"),
        *("--attacks", "fgsm,epsilon=0.03", "--output", output),
    )
    assert done.returncode == 0, done.stdout[-3000:]
    summary = storage.read_table(f"{output}/summary.parquet")
    assert summary.schema == schema.SUMMARY
    assert summary["n"].to_pylist() == [40, 40]
    assert "report.html" in done.stdout
    hardware = json.loads(Path(output, "run.json").read_text())["attempts"][0]["hardware"]
    assert hardware["cpus"] == 4


@pytest.mark.parametrize(
    ("name", "stream", "message"),
    [
        ("untrained", "stdout", "has to be trained first"),
        ("no output", "stdout", "give --output a URL such as s3://bucket/run, or an absolute path"),
        ("no folder", "stderr", "must be an existing directory"),
        ("no checkout", "stdout", "can't open file '"),
    ],
)
def test_a_job_that_is_refused_fails_on_the_cluster(
    name: str, stream: str, message: str, refused: Mapping[str, subprocess.Popen[str]]
) -> None:
    said = dict(zip(("stdout", "stderr"), refused[name].communicate(), strict=True))
    assert refused[name].returncode != 0
    assert message in said[stream]
    assert "Traceback" not in said["stdout"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["jobs/evaluate.py", "--atacks", "fgsm"], "--atacks"),
        (["jobs/evaluate.py", "--attacks", "fgsmm", "--data", "digits"], "unknown name 'fgsmm'"),
        (["jobs/evaluate.py", "--data", "s3-typo://bucket/x"], "s3-typo"),
        (["jobs/evaluate.py", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (
            ["jobs/train_mnist.py", "--model", "c_net", "--data", "digits", "--classifier", "None"],
            "unknown name 'c_net'",
        ),
        (["jobs/train_cifar.py", "--batch", "many"], "--batch"),
        (
            ["jobs/train_cifar.py", "--classifier", "None", "--clean-share", "0"],
            "clean_share = 0.0 would change nothing",
        ),
    ],
)
def test_mistakes_are_named_without_a_traceback(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [*words, "--output", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(words[0], run_name="__main__")
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert message in printed.out + printed.err
    assert "Traceback" not in printed.out + printed.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("job", ["demo", "train_mnist", "train_cifar", "evaluate"])
def test_help_is_for_a_newcomer(job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [f"jobs/{job}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(f"{ROOT}/jobs/{job}.py", run_name="__main__")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "--output" in printed
    assert "--config FILE.yaml" in printed


REAL_DATA = pytest.mark.skipif("RAYPURIFY_DATA" not in os.environ, reason="there is no real CIFAR-10 here")


@REAL_DATA
def test_train_cifar_finds_its_classifier_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs/train_cifar.py"), "--attacks", "pgdd"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "unknown name 'pgdd'" in done.stderr  # looked at once the classifier is loaded
    assert not list(tmp_path.iterdir())


@REAL_DATA
@pytest.mark.slow
def test_train_cifar_runs_as_it_stands_and_resumes_wherever_it_is_submitted_from(
    head: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    words = ["jobs/train_cifar.py", "--limit", "256", "--epochs", "3", "--batch", "64", "--validation", "64"]
    script, *flags = words
    alone = [sys.executable, str(ROOT / script), *flags, "--output", str(output)]
    job = subprocess.Popen(alone, cwd=tmp_path, start_new_session=True)
    try:
        wait_for(lambda: list(output.glob("checkpoints/checkpoint_*/model/config.json")), 180, "checkpoint")
    finally:
        end_session(job)
    assert not storage.is_success(str(output))
    done = submit(head, *words, "--output", str(output))
    assert done.returncode == 0, done.stdout[-3000:]
    run = storage.read_json(f"{output}/run.json")
    assert len(run["attempts"]) == 2
    model = storage.read_json(f"{output}/model/config.json")
    assert model["trained_for"]["classifier"] == "d_net"
    assert len(storage.read_json(f"{output}/model/metrics.json")["validation"]) == 3


@pytest.mark.slow
def test_a_submitted_job_that_is_stopped_releases_its_output(head: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    flags = ["--data", "digits", "--model", "a_net", "--classifier", "None", "--validation", "0", "--epochs", "200"]
    command = [str(RAY), "job", "submit", "--no-wait", "--submission-id", "stopped", "--working-dir", "."]
    command += ["--", "python", "jobs/train_mnist.py", *flags, "--cpus-per-worker", "1", "--output", str(output)]
    subprocess.run(command, env=head, cwd=ROOT, check=True)
    wait_for(lambda: list(output.glob("checkpoints/*/model/config.json")), 200, "first checkpoint")
    subprocess.run([str(RAY), "job", "stop", "stopped"], env=head, check=True)
    logs = subprocess.run([str(RAY), "job", "logs", "stopped"], env=head, check=True, capture_output=True, text=True)
    assert "interrupted: what is done stays done" in logs.stdout
    assert not (output / "_LEASE").exists()
