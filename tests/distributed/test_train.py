"""Training on a real local Ray: the same curve whatever the workers, and after whatever is killed."""

import dataclasses
import importlib
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from conftest import ROOT, end_session, lose, ray_processes, wait_for

from raypurify import models, plugins, runs, storage
from raypurify.data import Origin, open_source, read_rows
from raypurify.distributed import board
from raypurify.distributed.train import SLOW_MACHINE, StopAtFinalErrors
from raypurify.images import encode_png
from raypurify.jobs.monitor import Monitor
from raypurify.jobs.resources import TrainingResources
from raypurify.jobs.train import prepare, train
from raypurify.runs import StoppedError, progress, schema
from raypurify.storage import checkpoints
from raypurify.training import saved
from raypurify.training.batches import batch_of
from raypurify.training.config import TrainingConfig

CLASSIFIER = TrainingConfig(
    data="digits", model="a_net", epochs=3, batch=64, limit=400, validation=64, precision="float32", seed=7
)
RESOURCES = TrainingResources(cpus_per_worker=1, read_cpus=2)


def curve(output: str) -> np.ndarray:
    table = storage.read_table(storage.join(output, "metrics.parquet"))
    assert table.schema == schema.STEPS
    assert table["step"].to_pylist() == list(range(len(table)))
    return table["loss"].to_numpy()


@pytest.fixture(scope="module")
def undisturbed(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    output = str(tmp_path_factory.mktemp("runs") / "undisturbed")
    train(CLASSIFIER, RESOURCES, output)
    return output


@pytest.fixture(scope="module")
def twelve_epochs(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The curve of a training that nothing disturbs, and that is long enough to be disturbed."""
    output = str(tmp_path_factory.mktemp("runs") / "twelve")
    train(dataclasses.replace(CLASSIFIER, epochs=12), dataclasses.replace(RESOURCES, local=True), output)
    return curve(output)


def test_a_run_writes_what_its_readers_need(undisturbed: str) -> None:
    losses = curve(undisturbed)
    assert len(losses) == 3 * 5  # 400 images, of which 64 are held out, in batches of 64
    assert losses[-1] < losses[0]
    assert storage.is_success(undisturbed)
    run = storage.read_json(storage.join(undisturbed, "run.json"))
    assert run["identity"]["seed"] == 7
    assert "train_against" not in run["identity"], "an output of before there was a choice goes on"
    assert run["attempts"][0]["ended"]
    assert run["attempts"][0]["counts"]["in"] == len(losses) * 64
    model = models.load("classifier", storage.join(undisturbed, "model"))
    assert model.config["image_shape"] == [28, 28, 1]
    assert model.config["class_names"] is None
    assert Origin(**model.config["trained_on"]) == open_source("digits", split="train").origin
    assert model.build()(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    metrics = storage.read_json(storage.join(undisturbed, "model", "metrics.json"))
    assert len(metrics["validation"]) == 3
    assert 0 <= metrics["validation"][-1]["accuracy"] <= 1


def test_a_finished_run_is_left_alone_and_another_identity_is_refused(undisturbed: str) -> None:
    before = Path(undisturbed, "run.json").read_bytes()
    train(CLASSIFIER, RESOURCES, undisturbed)
    assert Path(undisturbed, "run.json").read_bytes() == before
    with pytest.raises(ValueError, match="seed = 7; this one has seed = 8"):
        train(dataclasses.replace(CLASSIFIER, seed=8), RESOURCES, undisturbed)


def test_a_run_that_was_cut_off_before_its_last_files_writes_them_in_the_precision_it_was_begun_in(
    undisturbed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    shutil.copytree(undisturbed, output)
    shutil.rmtree(output / "model")
    (output / "_SUCCESS").unlink()
    snapshot = output / "checkpoints/checkpoint_manager_snapshot.json"
    snapshot.write_bytes(snapshot.read_bytes()[:-40])
    train(dataclasses.replace(CLASSIFIER, precision="auto"), RESOURCES, str(output))
    assert storage.read_json(str(output / "run.json"))["identity"]["precision"] == "float32"
    told = "precision: float32, in which this run was begun; this hardware would be faster in bfloat16"
    assert (told in capsys.readouterr().out) == (models.fast_precision("cpu") == "bfloat16")
    assert (output / "model/model.safetensors").read_bytes() == Path(
        undisturbed, "model/model.safetensors"
    ).read_bytes()


def test_both_engines_give_one_curve_and_go_on_with_what_the_other_began(undisturbed: str, tmp_path: Path) -> None:
    outputs, engines = [tmp_path / "ray", tmp_path / "local"], [RESOURCES, dataclasses.replace(RESOURCES, local=True)]
    shutil.copytree(undisturbed, outputs[0])
    train(CLASSIFIER, engines[1], str(outputs[1]))

    def losses(output: Path) -> np.ndarray:
        return storage.read_table(f"{output}/metrics.parquet")["loss"].to_numpy()

    def scores(output: Path) -> list[dict[str, float]]:
        return storage.read_json(f"{output}/model/metrics.json")["validation"]

    expected = losses(outputs[0]), scores(outputs[0])
    assert losses(outputs[1]) == pytest.approx(expected[0], rel=1e-4)
    assert scores(outputs[1]) == expected[1]
    epochs = [storage.read_json(f"{output}/run.json")["attempts"][0]["counts"]["epochs"] for output in outputs]
    assert epochs[0] == epochs[1]
    assert epochs[0]["last"] == 3
    assert all((output / name).is_file() for output in outputs for name in ("best/config.json", "report.html"))
    for resources, begun_by_the_other in zip(engines, reversed(outputs), strict=True):
        last = saved.latest(f"{begun_by_the_other}/checkpoints")
        lose(begun_by_the_other, [f"checkpoints/{last}", "model", "metrics.parquet"])
        train(CLASSIFIER, resources, str(begun_by_the_other))
        assert losses(begun_by_the_other) == pytest.approx(expected[0], rel=1e-4)
        assert scores(begun_by_the_other) == expected[1]
        run = storage.read_json(f"{begun_by_the_other}/run.json")
        assert [attempt["config"]["local"] for attempt in run["attempts"]] == [not resources.local, resources.local]


class Diary:
    """A logger that is called in the driver."""

    told: ClassVar[list[tuple[Any, ...]]] = []

    def start(self, output: str, identity: Mapping[str, Any]) -> None:
        Diary.told.append(("start", os.getpid()))

    def epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        Diary.told.append((number, sorted(metrics)))

    def finish(self) -> None:
        Diary.told.append(("finish",))


def test_a_finished_training_goes_on_until_its_patience_ends(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two workers; the driver tells of the epochs, and calls a logger that no worker could import."""
    config = dataclasses.replace(CLASSIFIER, epochs=2, rate=1e-7, patience=3)  # no score changes
    resources, output = dataclasses.replace(RESOURCES, workers=2), str(tmp_path / "run")
    train(config, dataclasses.replace(RESOURCES, local=True), output)
    train(dataclasses.replace(config, epochs=6), resources, output, logger=f"{__name__}:Diary")
    scores = ["accuracy", "images_per_second", "loss"]
    assert Diary.told == [("start", os.getpid()), (3, scores), (4, scores), ("finish",)]
    printed = capsys.readouterr()
    assert "going on from epoch 2\nepoch 3/6: loss" in printed.out
    assert "stopped after epoch 4: no better score for 3 epochs" in printed.out
    assert "Traceback" not in printed.out + printed.err
    run = storage.read_json(f"{output}/run.json")
    assert run["identity"]["cycles"] == [2]
    assert run["attempts"][-1]["counts"]["epochs"] == {"last": 4, "best": 1}
    assert storage.read_json(f"{output}/best/metrics.json")["epoch"] == 1
    assert len(curve(output)) == 4 * 5


def test_the_first_worker_tells_the_driver_of_the_progress_within_an_epoch(
    local_ray: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(board, "SELDOM", 0.0)
    with board.followed(Monitor(epochs=3, images=400)) as told:
        board.Teller(None).progressed(1, 64, 1.0)
        board.Teller(told).progressed(2, 100, 2.0)
    assert "epoch 2/3: 100/400 images, 50 images/s, 6 s left, training: 14 s left" in capsys.readouterr().err


def test_a_training_can_start_from_another(undisturbed: str, tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    config = dataclasses.replace(CLASSIFIER, initial=f"{undisturbed}/model", precision="auto")
    train(config, dataclasses.replace(RESOURCES, local=True), output)
    assert curve(output)[0] < 0.8 * curve(undisturbed)[0]
    precision = storage.read_json(f"{output}/run.json")["identity"]["precision"]
    assert precision == models.fast_precision("cpu")
    assert storage.read_json(f"{output}/model/config.json")["training"]["precision"] == precision
    with pytest.raises(ValueError, match=r"holds a_net.*this training is of b_net"):
        train(dataclasses.replace(CLASSIFIER, model="b_net", initial=f"{undisturbed}/model"), RESOURCES, output)


def test_two_workers_give_one_workers_curve(local_ray: None, tmp_path: Path) -> None:
    config = TrainingConfig(
        data="digits",
        model="cru_net,width=4",
        classifier="small_networks:linear",
        attacks=("fgsm,epsilon=0.2", "pgd,epsilon=0.2,steps=3"),
        epochs=4,
        batch=96,
        limit=480,
        validation=0,
        precision="float32",
    )
    curves = []
    for workers in (1, 2):
        output = str(tmp_path / str(workers))
        train(config, dataclasses.replace(RESOURCES, workers=workers, local=workers == 1), output)
        curves.append(curve(output))
    assert len(curves[0]) == 20
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-4)


def test_batch_statistics_and_dropout_do_not_depend_on_the_number_of_workers(local_ray: None, tmp_path: Path) -> None:
    config = dataclasses.replace(CLASSIFIER, model="networks:Mixing", epochs=2, batch=72, validation=0)
    curves, networks = [], []
    for workers in (1, 2, 3):
        output = str(tmp_path / str(workers))
        train(config, dataclasses.replace(RESOURCES, workers=workers, local=workers == 1), output)
        curves.append(curve(output))
        network = safetensors.torch.load_file(f"{output}/model/model.safetensors")
        networks.append(torch.cat([value.double().flatten() for value in network.values()]))
    assert len(curves[0]) == 10
    for other, network in zip(curves[1:], networks[1:], strict=True):
        # AdamW makes a full step of a gradient that is all rounding, so rounding grows from step to step.
        np.testing.assert_allclose(other[0], curves[0][0], rtol=1e-5)
        np.testing.assert_allclose(other, curves[0], rtol=2e-3)
        assert (network - networks[0]).norm() < 5e-3 * networks[0].norm()


def test_a_training_that_diverges_stops_and_keeps_its_last_good_checkpoint(local_ray: None, tmp_path: Path) -> None:
    output = tmp_path / "run"
    config = dataclasses.replace(CLASSIFIER, model="networks:Diverging,steps=6", rate=0.02)
    with pytest.raises(runs.StoppedError, match=r"diverged in epoch 2: the loss is nan at step 6, .*rate is 0.01"):
        train(config, RESOURCES, str(output))
    (kept,) = (path for path in output.glob("checkpoints/checkpoint_*") if path.is_dir())
    assert storage.read_json(str(kept / "model/metrics.json"))["epoch"] == 1
    assert not (output / "model").exists()
    assert not storage.is_success(str(output))


def test_what_a_network_raises_is_told_with_a_file_of_its_traceback(local_ray: None, tmp_path: Path) -> None:
    config = dataclasses.replace(CLASSIFIER, model="networks:Broken")
    with pytest.raises(runs.FailedError, match=r"^ValueError: no such thing$"):
        train(config, RESOURCES, str(tmp_path / "run"))
    (kept,) = (tmp_path / "run/errors").iterdir()
    assert 'raise ValueError("no such thing")' in kept.read_text()


def test_a_killed_worker_is_replaced_and_the_curve_is_undisturbed(
    local_ray: None, twelve_epochs: np.ndarray, tmp_path: Path
) -> None:
    output = str(tmp_path / "run")
    killed: list[int] = []

    def kill_after_the_first_checkpoint() -> None:
        wait_for(lambda: list(Path(output).glob("checkpoints/checkpoint_*")), 120, "checkpoint")
        for process in ray_processes("RayTrainWorker"):
            process.kill()
            killed.append(process.pid)

    watcher = threading.Thread(target=kill_after_the_first_checkpoint)
    watcher.start()
    train(dataclasses.replace(CLASSIFIER, epochs=12), RESOURCES, output)
    watcher.join()
    assert killed
    np.testing.assert_allclose(curve(output), twelve_epochs, rtol=1e-5)


@pytest.mark.slow
def test_workers_killed_within_an_epoch_go_on_from_the_step(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(CLASSIFIER, epochs=1, batch=8, limit=800)
    workers = dataclasses.replace(RESOURCES, workers=2)
    train(config, workers, str(tmp_path / "undisturbed"))
    output = tmp_path / "run"
    snapshot = output / "checkpoints/checkpoint_manager_snapshot.json"

    def kill_within_the_epoch() -> None:
        wait_for(lambda: snapshot.exists() and "checkpoint_2" in snapshot.read_text(), 120, "checkpoint in Ray's list")
        for process in ray_processes("RayTrainWorker"):
            process.kill()

    watcher = threading.Thread(target=kill_within_the_epoch)
    watcher.start()
    capsys.readouterr()
    train(config, dataclasses.replace(workers, checkpoint_minutes=0), str(output))
    watcher.join()
    assert "going on from epoch 0 and step " in capsys.readouterr().out
    np.testing.assert_array_equal(curve(str(output)), curve(str(tmp_path / "undisturbed")))
    networks = [(tmp_path / run / "model/model.safetensors").read_bytes() for run in ("run", "undisturbed")]
    assert networks[0] == networks[1]


def test_a_killed_driver_goes_on_from_the_last_checkpoint(
    local_ray: None, twelve_epochs: np.ndarray, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    config = dataclasses.replace(CLASSIFIER, epochs=12)
    flags = ["--data", "digits", "--model", "a_net", "--classifier", "None", "--epochs", "12", "--batch", "64"]
    flags += ["--limit", "400", "--validation", "64", "--precision", "float32", "--seed", "7", "--cpus-per-worker", "1"]
    command = [sys.executable, str(ROOT / "jobs/train_mnist.py"), *flags, "--output", str(output)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    driver = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        wait_for(lambda: list(output.glob("checkpoints/checkpoint_*")), 120, "checkpoint")
    finally:
        end_session(driver)
    assert not storage.is_success(str(output))
    train(dataclasses.replace(config, attacks=CLASSIFIER.attacks), RESOURCES, str(output))
    run = json.loads((output / "run.json").read_text())
    assert len(run["attempts"]) == 2
    np.testing.assert_allclose(curve(str(output)), twelve_epochs, rtol=1e-5)


def test_images_that_cannot_be_decoded_are_rejects(
    local_ray: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    digits = read_rows(open_source("digits", split="train").shards[0], 0, 200)
    encoded = [encode_png(image) for image in np.asarray(digits.images)]
    bad = {0, 77, 150}
    for row in bad:
        encoded[row] = b"no image"
    pq.write_table(pa.table({"image": encoded, "label": digits.labels}), tmp_path / "train.parquet", row_group_size=64)
    config = dataclasses.replace(CLASSIFIER, data=str(tmp_path), limit=None, validation=40, epochs=2, batch=40)
    train(config, dataclasses.replace(RESOURCES, local=True), str(tmp_path / "run"), max_rejects=0.02)
    rejects = storage.read_table(str(tmp_path / "run/rejects/training.parquet"), schema.REJECTS.names)
    assert rejects["id"].to_pylist() == sorted(f"train.parquet#{row}" for row in bad)
    assert len(curve(str(tmp_path / "run"))) == 2 * 4
    assert storage.read_json(str(tmp_path / "run/run.json"))["attempts"][0]["counts"]["rejected"] == 3
    capfd.readouterr()
    with pytest.raises(StoppedError, match=r"of 200 images cannot be decoded, more than --max-rejects=0.001"):
        train(config, RESOURCES, str(tmp_path / "stopped"), max_rejects=0.001)
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err


@pytest.mark.slow
def test_sorted_data_train_as_shuffled_ones_do(local_ray: None, tmp_path: Path) -> None:
    digits = [open_source("digits", split="train"), open_source("digits", split="test")]
    rows, held = (read_rows(source.shards[0], 0, source.rows) for source in digits)
    orders = {"sorted": np.argsort(rows.labels, kind="stable"), "shuffled": np.random.default_rng(5).permutation(1500)}
    accuracies = []
    for name, order in orders.items():
        encoded = [encode_png(rows.images[row]) for row in order]
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"image": encoded, "label": rows.labels[order]}), tmp_path / name / "train.parquet")
        config = dataclasses.replace(
            CLASSIFIER, data=str(tmp_path / name), limit=None, validation=150, epochs=8, batch=32, rate=2e-3
        )
        model = train(dataclasses.replace(config, augmentation="affine"), RESOURCES, str(tmp_path / f"run-{name}"))
        batch = batch_of(np.asarray(held.images), held.labels, (), "cpu")
        with torch.no_grad():
            predictions = models.load("classifier", model).build()(batch.x).argmax(dim=1)
        accuracies.append((predictions == batch.y).double().mean().item())
    assert min(accuracies) > 0.97
    assert abs(accuracies[0] - accuracies[1]) <= 0.01


def test_checkpoints_and_model_go_to_s3(s3: str, local_ray: None, undisturbed: str) -> None:
    output = f"{s3}/train"
    train(CLASSIFIER, RESOURCES, output)
    np.testing.assert_allclose(curve(output), curve(undisturbed), rtol=1e-5)
    assert storage.is_success(output)
    assert (
        len([url for url in storage.list_files(f"{output}/checkpoints") if url.endswith("optimizer.safetensors")]) == 2
    )
    here = safetensors.torch.load_file(str(Path(undisturbed, "model/model.safetensors")))
    there = safetensors.torch.load(storage.read_bytes(f"{output}/model/model.safetensors"))
    assert all(torch.allclose(here[name], there[name], atol=1e-5) for name in here)


def test_a_slow_machine_prints_no_traceback_of_rays() -> None:
    """Ray Train's controller, to which the callback is sent, would log one when a request takes 5 seconds."""
    logger = importlib.import_module(SLOW_MACHINE).logger
    logger.setLevel(logging.NOTSET)
    assert isinstance(pickle.loads(pickle.dumps(StopAtFinalErrors())), StopAtFinalErrors)
    assert logger.level == logging.ERROR


def test_a_purifier_to_start_from_may_come_from_other_classes(tmp_path: Path) -> None:
    """A purifier knows no classes: those of the data that it was trained on bind no other training."""
    kinds: dict[str, models.Kind] = {"a_net": "classifier", "cru_net": "purifier"}
    names = {"a_net": ["cat", "dog"], "cru_net": ["ant", "bee"]}
    for plugin, kind in kinds.items():
        spec = models.shaped_for(kind, plugin, (28, 28, 1), 2)
        config = {"kind": kind, "plugin": plugin, "params": spec.params, "class_names": names[plugin]}
        checkpoints.save(str(tmp_path / plugin), config, plugins.build(models.PACKAGES[kind], spec).state_dict())
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(60):
            (tmp_path / "data" / name / f"{number}.png").write_bytes(encode_png(np.zeros((28, 28, 1), np.uint8)))
    start = TrainingConfig(
        data=str(tmp_path / "data"),
        model="cru_net",
        classifier=str(tmp_path / "a_net"),
        initial=str(tmp_path / "cru_net"),
        batch=8,
        validation=10,
    )
    assert prepare(start, RESOURCES).source.classes == ("cat", "dog")


def test_bad_input_is_refused_before_any_work(local_ray: None, small_classifier: str, tmp_path: Path) -> None:
    output = str(tmp_path / "run")

    def refused(message: str, resources: TrainingResources = RESOURCES, **changes: object) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            train(dataclasses.replace(CLASSIFIER, **changes), resources, output)  # type: ignore[arg-type]
        assert storage.list_files(output) == []

    refused("unknown name 'c_net'", model="c_net")
    refused("unknown name 'pgdd'", model="cru_net", classifier=small_classifier, attacks=("pgdd",))
    refused("no checkpoint", model="cru_net", classifier="nowhere/model")
    refused("nothing to train", model="jpeg", classifier=small_classifier)
    refused("nowhere", data=str(tmp_path / "nowhere"))
    refused("401 images to hold out are more than the 400", validation=401)
    refused("0 GPU.*Give no --use-gpu", resources=TrainingResources(use_gpu=True))
