"""What is seen of a training, when it ends, and how one that is done goes on."""

import dataclasses
import shutil
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from tensorboardX.proto.event_pb2 import Event
from torch import Tensor, nn

from raypurify import images, storage
from raypurify.data import labels_of, open_source
from raypurify.jobs.monitor import Monitor
from raypurify.jobs.resources import TrainingResources
from raypurify.jobs.train import train
from raypurify.runs import FailedError, StoppedError, progress, schema
from raypurify.training import saved
from raypurify.training.config import TrainingConfig
from raypurify.training.loggers import build_logger
from raypurify.training.order import held_out_rows, hold_out

ONE_WORKER = TrainingResources(cpus_per_worker=1, local=True)
TRAINING = TrainingConfig(
    data="digits", model="a_net", epochs=2, batch=64, limit=400, validation=64, precision="float32", seed=7
)
STANDING = dataclasses.replace(TRAINING, epochs=5, rate=1e-7)
"""A training that changes the network, and too little to change a score."""


class Diary:
    """A logger of the user's, which also keeps the network of each epoch but the last."""

    entries: list[Any]

    def start(self, output: str, identity: Mapping[str, Any]) -> None:
        self.output = Path(output)
        Diary.entries = [("start", output, identity["seed"])]
        Diary.networks = {}

    def epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        Diary.entries.append((number, dict(metrics)))
        for path in self.output.glob("checkpoints/*/model/model.safetensors"):
            epoch = saved.progress(str(path.parents[1]))[0]
            Diary.networks[epoch] = path.read_bytes()

    def finish(self) -> None:
        Diary.entries.append("finish")


class Forgetful(nn.Module):
    """Learns for an epoch, and knows nothing after it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(28 * 28, 10)
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.batches += self.training
        return self.linear(x.flatten(1)) * (self.batches <= 5)


def failing() -> Diary:
    diary = Diary()
    diary.epoch = lambda number, metrics: [][number]  # type: ignore[method-assign]
    return diary


def lose_the_last_epoch(output: Path) -> None:
    """Make a run one that was cut off in its last epoch."""
    shutil.rmtree(output / "checkpoints" / str(saved.latest(str(output / "checkpoints"))))
    for name in ("model", "best"):
        shutil.rmtree(output / name, ignore_errors=True)
    (output / "_SUCCESS").unlink()


def weights(output: Path, folder: str) -> bytes:
    return (output / folder / "model.safetensors").read_bytes()


def run_of(output: Path) -> Any:
    return storage.read_json(str(output / "run.json"))


def test_a_finished_training_goes_on_to_more_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    four = dataclasses.replace(TRAINING, epochs=4)
    train(four, ONE_WORKER, str(tmp_path / "at once"))
    for name in ("undisturbed", "cut off"):
        train(TRAINING, ONE_WORKER, str(tmp_path / name))
        capsys.readouterr()
        train(four, ONE_WORKER, str(tmp_path / name))
        assert "going on from epoch 2\nepoch 3/4: loss" in capsys.readouterr().out
    lose_the_last_epoch(tmp_path / "cut off")
    train(four, ONE_WORKER, str(tmp_path / "cut off"))
    assert "going on from epoch 3\nepoch 4/4: loss" in capsys.readouterr().out
    for folder in ("model", "best"):
        assert weights(tmp_path / "cut off", folder) == weights(tmp_path / "undisturbed", folder)
    assert weights(tmp_path / "at once", "model") != weights(tmp_path / "undisturbed", "model")
    assert run_of(tmp_path / "undisturbed")["identity"]["cycles"] == [2]
    assert "cycles" not in run_of(tmp_path / "at once")["identity"]
    rates = storage.read_table(str(tmp_path / "undisturbed/metrics.parquet"))["rate"].to_numpy().reshape(4, -1)
    assert rates.max(axis=1).argsort()[-2:].tolist() in ([0, 2], [2, 0]), "a cycle of two epochs, twice"
    np.testing.assert_allclose(rates[2:], rates[:2])


def test_the_state_of_the_optimizer_is_gone_on_with(tmp_path: Path) -> None:
    train(TRAINING, ONE_WORKER, str(tmp_path / "run"))
    train(dataclasses.replace(TRAINING, epochs=3), ONE_WORKER, str(tmp_path / "run"))
    last = saved.latest(str(tmp_path / "run/checkpoints"))
    tensors = storage.read_bytes(str(tmp_path / f"run/checkpoints/{last}/optimizer.safetensors"))
    assert safetensors.torch.load(tensors)["0.step"].item() == 3 * 5


def test_what_cannot_go_on_to_other_epochs_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(TRAINING, ONE_WORKER, str(output))
    with pytest.raises(ValueError, match="holds a run with epochs = 2; this one has epochs = 1"):
        train(dataclasses.replace(TRAINING, epochs=1), ONE_WORKER, str(output))
    with pytest.raises(ValueError, match=r"holds a run with rate = 0\.001; this one has rate = 0\.01"):
        train(dataclasses.replace(TRAINING, epochs=4, rate=0.01), ONE_WORKER, str(output))
    lose_the_last_epoch(output)
    with pytest.raises(ValueError, match=r"has a checkpoint of epoch 1 of 2: .* Let it end with --epochs 2 before"):
        train(dataclasses.replace(TRAINING, epochs=4), ONE_WORKER, str(output))
    train(TRAINING, ONE_WORKER, str(output))


def test_patience_ends_a_training_and_the_best_epoch_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, config = tmp_path / "run", dataclasses.replace(STANDING, patience=2)
    train(config, ONE_WORKER, str(output), logger=f"{__name__}:Diary")
    told = capsys.readouterr().out
    assert "stopped after epoch 3: no better score for 2 epochs" in told
    assert "warning" not in told
    assert run_of(output)["attempts"][0]["counts"]["epochs"] == {"last": 3, "best": 1}
    assert storage.read_json(str(output / "model/metrics.json"))["epoch"] == 3
    assert storage.read_json(str(output / "best/metrics.json"))["epoch"] == 1
    best, last = weights(output, "best"), weights(output, "model")
    assert best == Diary.networks[1] != last
    train(config, ONE_WORKER, str(output))
    assert len(run_of(output)["attempts"]) == 1, "it is finished"
    with pytest.raises(ValueError, match=r"epoch 3 of 5: it is finished, and cannot go on. Train another from --init"):
        train(dataclasses.replace(config, epochs=9), ONE_WORKER, str(output))
    lose_the_last_epoch(output)
    train(config, ONE_WORKER, str(output))
    assert (weights(output, "best"), weights(output, "model")) == (best, last)


def test_a_training_that_lost_what_it_knew_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = dataclasses.replace(TRAINING, model=f"{__name__}:Forgetful", rate=0.05)
    train(config, ONE_WORKER, str(tmp_path / "two"))
    told = capsys.readouterr().out
    best, last = (
        scores["accuracy"] for scores in storage.read_json(str(tmp_path / "two/model/metrics.json"))["validation"]
    )
    assert (
        f"warning: accuracy ended at {last:.4f}, from {best:.4f} in the best epoch: the training lost what it" in told
    )


def test_the_last_epoch_may_be_the_best(tmp_path: Path) -> None:
    train(TRAINING, ONE_WORKER, str(tmp_path / "run"))
    scores = storage.read_json(str(tmp_path / "run/model/metrics.json"))["validation"]
    assert scores[1]["accuracy"] > scores[0]["accuracy"]
    assert weights(tmp_path / "run", "best") == weights(tmp_path / "run", "model")


def test_without_held_out_images_no_epoch_is_the_best(tmp_path: Path) -> None:
    train(dataclasses.replace(TRAINING, epochs=1, validation=0), ONE_WORKER, str(tmp_path / "run"))
    assert not (tmp_path / "run/best").exists()
    assert run_of(tmp_path / "run")["attempts"][0]["counts"]["epochs"] == {"last": 1, "best": None}
    with pytest.raises(ValueError, match="patience = 2 needs held-out images to score; give a --validation above 0"):
        dataclasses.replace(TRAINING, validation=0, patience=2)


def test_a_checkpoint_of_before_there_was_a_best_epoch_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(STANDING, ONE_WORKER, str(output))
    lose_the_last_epoch(output)
    shutil.rmtree(output / "checkpoints/checkpoint_000004/best")
    path = str(output / "checkpoints/checkpoint_000004/model/metrics.json")
    metrics = storage.read_json(path)
    storage.write_json(path, {name: metrics[name] for name in ("epoch", "images", "validation")})
    train(STANDING, ONE_WORKER, str(output))
    assert storage.read_json(str(output / "best/metrics.json"))["epoch"] == 4, "the first whose network is there"


def test_a_logger_is_told_of_each_epoch_and_is_no_part_of_the_identity(tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(TRAINING, ONE_WORKER, str(output), logger=f"{__name__}:Diary")
    start, first, second, finish = Diary.entries
    assert start == ("start", str(output), 7)
    assert finish == "finish"
    assert [first[0], second[0]] == [1, 2]
    assert set(first[1]) == {"loss", "images_per_second", "accuracy"}
    losses = storage.read_table(str(output / "metrics.parquet"))["loss"].to_numpy()
    assert second[1]["loss"] == pytest.approx(losses[5:].mean())
    train(TRAINING, ONE_WORKER, str(output), logger="tensorboard")
    assert not (output / "tensorboard").exists(), "it is finished"


class Broken(nn.Module):
    """A classifier that is broken in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(28 * 28, 10)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("no such thing")
        return self.head(x.flatten(1))


class Mourner(Diary):
    def failed(self, error: BaseException) -> None:
        Diary.entries.append(repr(error))


def test_a_fault_of_the_network_has_a_traceback_and_a_logger_is_told(tmp_path: Path) -> None:
    broken = dataclasses.replace(TRAINING, model=f"{__name__}:Broken")
    with pytest.raises(FailedError, match=r"^ValueError: no such thing$"):
        train(broken, ONE_WORKER, str(tmp_path / "run"), logger=f"{__name__}:Mourner")
    (kept,) = (tmp_path / "run/errors").iterdir()
    assert 'raise ValueError("no such thing")' in kept.read_text()
    assert Diary.entries[1:] == ["FailedError('ValueError: no such thing')", "finish"]


@pytest.mark.parametrize(
    ("model", "classifier", "message"),
    [
        (
            "cru_net",
            None,
            "cru_net is a purifier, and with classifier = None a classifier is trained; .* as a_net",
        ),
        (
            "a_net",
            "weights",
            "a_net is a classifier, and with classifier = .* a purifier is trained; .* as cru_net",
        ),
    ],
)
def test_a_network_of_the_other_kind_is_refused(
    model: str, classifier: str | None, message: str, small_classifier: str, tmp_path: Path
) -> None:
    config = dataclasses.replace(TRAINING, model=model, classifier=classifier and small_classifier)
    with pytest.raises(ValueError, match=message):
        train(config, ONE_WORKER, str(tmp_path / "run"))


def test_a_logger_whose_library_lacks_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "no_library.py").write_text("import no_such_library\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with pytest.raises(ImportError, match="needs the package no_such_library: pip install no_such_library"):
            build_logger("no_library:Logger")
        patch.setitem(sys.modules, "mlflow", None)
        with pytest.raises(ImportError, match=r"needs the package mlflow: pip install 'raypurify\[mlflow\]'"):
            build_logger("mlflow")


def test_mlflow_is_told_how_a_training_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # without a package for databases
    mlflow = pytest.importorskip("mlflow")
    broken = dataclasses.replace(TRAINING, model=f"{__name__}:Broken")
    logger = f"mlflow,uri=file://{tmp_path}/mlflow"
    with pytest.raises(FailedError):
        train(broken, ONE_WORKER, str(tmp_path / "broken"), logger=logger)
    train(dataclasses.replace(TRAINING, epochs=1), ONE_WORKER, str(tmp_path / "whole"), logger=logger)
    runs = mlflow.search_runs(experiment_names=["raypurify"], output_format="list")
    assert {Path(run.info.run_name).name: run.info.status for run in runs} == {"broken": "FAILED", "whole": "FINISHED"}


def test_a_logger_that_fails_does_not_end_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(TRAINING, ONE_WORKER, str(tmp_path / "run"), logger=f"{__name__}:failing")
    assert storage.is_success(str(tmp_path / "run"))
    assert capsys.readouterr().err.count("warning: the logger failed, and is not called again: IndexError") == 1
    with pytest.raises(ValueError, match="builds dict, which lacks start, epoch or finish"):
        train(TRAINING, ONE_WORKER, str(tmp_path / "other"), logger="builtins:dict")
    with pytest.raises(ValueError, match="known are mlflow, tensorboard"):
        train(TRAINING, ONE_WORKER, str(tmp_path / "other"), logger="tensorbored")
    assert not (tmp_path / "other").exists()


def events(folder: Path) -> list[Event]:
    """What TensorBoard's files hold: records of a length, its checksum, the data, their checksum."""
    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def test_tensorboards_files_hold_the_metrics_by_epoch(tmp_path: Path) -> None:
    train(TRAINING, ONE_WORKER, str(tmp_path / "run"), logger="tensorboard")
    scores = storage.read_json(str(tmp_path / "run/model/metrics.json"))["validation"]
    scalars = {
        (value.tag, event.step): value.simple_value
        for event in events(tmp_path / "run/tensorboard")
        for value in event.summary.value
    }
    for number in (1, 2):
        assert scalars["accuracy", number] == pytest.approx(scores[number - 1]["accuracy"])
        assert scalars["loss", number] > 0


def test_progress_within_an_epoch_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    train(TRAINING, ONE_WORKER, str(tmp_path / "run"))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2 * 5
    assert lines[1].startswith("epoch 1/2: 128/320 images, ")
    assert " s left, training: " in lines[1]
    assert lines[9].startswith("epoch 2/2: 320/320 images, ")


def test_time_left_follows_from_the_epochs_own_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with Monitor(epochs=4, images=1000) as monitor:
        monitor.progressed(2, 250, 10.0)
        shown = capsys.readouterr().err
        assert "epoch 2/4: 250/1,000 images, 25 images/s, 30 s left, training: 1 min 50 s left" in shown
        monitor.trained({"epoch": 2.0, "loss": 0.5, "images_per_second": 25.0, "accuracy": 0.75})
        assert capsys.readouterr().out == "epoch 2/4: loss 0.50000, 25 images/s, accuracy 0.7500\n"
        monitor.progressed(3, 100, 10.0)
        monitor.resumed(2)
        monitor.trained({"epoch": 2.0, "loss": 0.5, "images_per_second": 25.0, "accuracy": 0.75})
        assert capsys.readouterr().out == "going on from epoch 2\n", "an epoch is told once"


def test_a_training_writes_its_classes_and_its_page(tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(TRAINING, ONE_WORKER, str(output))
    classes = storage.read_table(str(output / "classes.parquet"))
    assert classes.schema == schema.CLASSES
    assert (sum(classes["trained"].to_pylist()), sum(classes["held_out"].to_pylist())) == (336, 64)
    assert classes["label"].to_pylist() == list(range(10))
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "a_net trained on digits" in page
    assert "Scores of the held-out images" in page


def test_thresholds_want_a_held_out_image_that_can_be_decoded(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 28, 28, 1), dtype=np.uint8)
    for number, image in enumerate(pixels):
        path = tmp_path / f"data/train/{number % 10}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.encode_png(image))
    source = open_source(str(tmp_path / "data"), split="train")
    _, held_out = hold_out(source, labels_of(source), 1, 0)
    ((held,),) = (rows.ids for rows in held_out_rows(held_out, (28, 28, 1), 0, 1))
    (tmp_path / "data" / held).write_bytes(b"damaged")
    config = TrainingConfig(
        data=str(tmp_path / "data"), model="magnet", classifier="small_networks:linear", epochs=1, batch=8, validation=1
    )
    with pytest.raises(StoppedError, match="no held-out image can be decoded"):
        train(config, ONE_WORKER, str(tmp_path / "run"))
