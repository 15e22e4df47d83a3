"""The engine of one process: it needs no Ray, and goes on where it was cut off."""

import dataclasses
import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raypurify import runs, storage
from raypurify.command.main import main
from raypurify.data import View
from raypurify.evaluation.generation import GenerationConfig
from raypurify.evaluation.grid import EvaluationConfig
from raypurify.images import decode
from raypurify.jobs.attack import attack
from raypurify.jobs.evaluate import dry_run, evaluate
from raypurify.jobs.resources import ActorPool, TrainingResources
from raypurify.jobs.train import train
from raypurify.runs import lease
from raypurify.runs.status import status_of
from raypurify.training.config import TrainingConfig

WITHOUT_RAY = """
import json
import sys
from importlib import metadata

distribution = metadata.distribution
metadata.distribution = lambda name: distribution("no-such-package" if name == "ray" else name)
sys.modules["ray"] = None

from raypurify.command.main import main

for words in json.loads(sys.argv.pop()):
    sys.argv[1:] = words
    main()
"""
"""Jobs one after the other in one process, up to the first that fails."""
POOL = ActorPool(actors=1, batch=64, local=True)
ONE_WORKER = TrainingResources(cpus_per_worker=1, local=True)
TRAINING = TrainingConfig(
    data="digits", model="a_net", epochs=4, batch=64, limit=400, validation=64, precision="float32", seed=7
)


def command(*jobs: str) -> list[str]:
    return [sys.executable, "-c", WITHOUT_RAY, json.dumps([words.split() for words in jobs])]


def test_jobs_need_no_ray(small_classifier: str, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(np.full((9, 9), 7, np.uint8)).save(pictures / "a.png")
    jobs = [
        "evaluate --data digits --limit 40 --attacks fgsm,epsilon=0.1 --purifiers threshold "
        f"--classifiers {small_classifier}",
        f"attack --input digits --limit 40 --attack fgsm,epsilon=0.1 --classifier {small_classifier}",
        "train digits --data digits --limit 200 --epochs 1 --validation 0 --model a_net --classifier None",
        f"clean --input {pictures} --purifier mean_filter",
    ]
    outputs = [str(tmp_path / words.split()[0]) for words in jobs]
    told = [f"{words} --local --output {output}" for words, output in zip(jobs, outputs, strict=True)]
    done = subprocess.run(command(*told), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [output for output in outputs if not storage.is_success(output)] == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Does a job in this process, undisturbed, and returns its output."""

    @functools.cache
    def run(words: str) -> Path:
        output = tmp_path_factory.mktemp("whole") / "run"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["raypurify", *words.split(), "--local", "--output", str(output)])
            main()
        return output

    return run


TRAIN = "train digits --data digits --limit 600 --epochs 2 --batch 16 --validation 40 --model a_net --classifier None "
TRAIN += "--augmentation affine --precision float32 --cpus-per-worker 1"


def made(output: Path) -> Mapping[str, bytes]:
    paths = [*output.glob("scores/**/*.parquet"), *output.glob("model/model.safetensors")]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    ("words", "moment"),
    [
        (
            "evaluate --data digits --split train --limit 256 --attacks pgd,epsilon=0.1,steps=10 --purifiers identity "
            "--actors 1 --classifiers {classifier}",
            "scores/*/000001.parquet",
        ),
        (TRAIN, "checkpoints/checkpoint_000001/model/config.json"),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    words: str, moment: str, small_classifier: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    words = words.format(classifier=small_classifier)
    expected = made(whole(words))
    assert expected
    job = command(f"{words} --local --output {output}")
    with subprocess.Popen(job, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(output.glob(moment)):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("interrupted: what is done stays done; give the same command to go on\n")
    assert not (output / "_LEASE").exists()
    assert not (output / "_SUCCESS").exists()
    subprocess.run(job, check=True, capture_output=True)
    assert made(output) == expected


def test_a_training_killed_within_an_epoch_goes_on_from_the_step(whole: Callable[[str], Path], tmp_path: Path) -> None:
    """A-net has dropout: what it draws goes on, too."""
    output = tmp_path / "run"
    words = f"{TRAIN} --local --output {output}"

    def trained(output: Path) -> tuple[Mapping[str, bytes], list[float]]:
        networks = {path.parent.name: path.read_bytes() for path in output.glob("*/model.safetensors")}
        return networks, storage.read_table(str(output / "metrics.parquet"))["loss"].to_pylist()

    undisturbed = whole(TRAIN)
    assert len(list(undisturbed.glob("checkpoints/*"))) == 2, "short epochs have no other checkpoints"
    expected = trained(undisturbed)
    assert len(expected[0]) == 2
    with subprocess.Popen(command(f"{words} --checkpoint-minutes 0"), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(output.glob("checkpoints/checkpoint_000001_*/model/config.json")):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    parts = {part.name: part for part in status_of(str(output)).extent.parts}
    assert (parts["epochs"].done, parts["epochs"].total) == (1, 2)
    assert parts["images"].done > parts["images"].total // 2 == 35 * 16
    done = subprocess.run(command(words), check=True, capture_output=True, text=True)
    assert re.search(r"^going on from epoch 1 and step \d+ of epoch 2\nepoch 2/2: ", done.stdout, re.MULTILINE)
    assert trained(output) == expected


def test_a_dry_run_is_of_one_process_with_the_threads_of_all(small_classifier: str) -> None:
    config = EvaluationConfig(data="digits", limit=20, classifiers=(small_classifier,), attacks=("none",))
    found = dry_run(config, dataclasses.replace(POOL, actors=2))
    assert found["actors"] == "1 actor(s) of 2 CPU(s) each"
    assert found["tried"] == "20 on cpu"


def test_two_do_not_write_to_one_output(small_classifier: str, tmp_path: Path) -> None:
    config = EvaluationConfig(data="digits", limit=20, classifiers=(small_classifier,), attacks=("none",))
    with lease.hold(str(tmp_path / "run")), pytest.raises(ValueError, match="writes to this output since"):
        evaluate(config, POOL, str(tmp_path / "run"))


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(runs.StoppedError, match="the training diverged in epoch 1"):
        train(dataclasses.replace(TRAINING, rate=1e30), ONE_WORKER, str(tmp_path / "run"))


def test_what_cannot_be_done_here_is_refused_with_the_flag(small_classifier: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"workers: with local this process is the only one; got 2"):
        TrainingResources(workers=2, local=True)
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config = GenerationConfig(input="digits", limit=20, attack="fgsm", classifier=small_classifier)
    with pytest.raises(ValueError, match=r"torch finds none on this machine. Give --gpus-per-actor 0"):
        attack(config, dataclasses.replace(POOL, gpus_per_actor=1), str(tmp_path / "run"))


def photographs(root: Path, split: str, count: int = 40) -> str:
    """Grey images of several sizes in ten class folders."""
    for number in range(count):
        path = root / split / str(number % 10) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((40 + number % 7, 50 - number % 3), 10 * (number % 10) + number, np.uint8)
        Image.fromarray(pixels).save(path)
    return str(root)


def test_a_view_is_part_of_a_runs_identity_and_gives_images_of_one_shape(small_classifier: str, tmp_path: Path) -> None:
    data, output = photographs(tmp_path / "photos", "test"), str(tmp_path / "run")
    attacked = GenerationConfig(input=data, attack="none", classifier=small_classifier, view=View(resize=32, crop=28))
    with pytest.raises(ValueError, match=r"photos: 38 of 40 images are not .* Give --resize 40 --crop 40\. As they"):
        attack(dataclasses.replace(attacked, view=View()), POOL, output)
    assert attack(attacked, POOL, output)["n"] == 40
    table = storage.read_table(storage.list_files(f"{output}/images")[0])
    stored = {f"test/{path.parent.name}/{path.name}": path for path in (tmp_path / "photos/test").glob("*/*.png")}
    for row in table.to_pylist():
        pixels = View(resize=32, crop=28).show(decode(stored[row["id"]].read_bytes()))
        np.testing.assert_array_equal(decode(row["image"]), pixels)
    assert {"resize": 32, "crop": 28}.items() <= runs.identity_of(output).items()
    with pytest.raises(ValueError, match=r"holds a run with resize = 32; this one has resize = 33"):
        attack(dataclasses.replace(attacked, view=View(resize=33, crop=28)), POOL, output)


def test_a_training_records_its_view_and_an_evaluation_takes_it(tmp_path: Path) -> None:
    data = photographs(tmp_path / "photos", "train", 80)
    photographs(tmp_path / "photos", "test")
    config = dataclasses.replace(TRAINING, data=data, epochs=2, batch=16, limit=None, validation=16)
    with pytest.raises(ValueError, match=r"a training needs images of one shape: photos: .* --crop 40$"):
        train(config, ONE_WORKER, str(tmp_path / "no"))
    shown = dataclasses.replace(config, view=View(resize=32, crop=28))
    model = train(shown, ONE_WORKER, str(tmp_path / "run"))
    told = storage.read_json(f"{model}/config.json")
    assert (told["view"], told["image_shape"]) == ({"resize": 32, "crop": 28}, [28, 28, 1])
    with pytest.raises(ValueError, match=r"holds a run with resize = 32; this one has resize = 36"):
        train(dataclasses.replace(shown, view=View(resize=36, crop=28)), ONE_WORKER, str(tmp_path / "run"))
    evaluated = EvaluationConfig(data=data, classifiers=(model,), attacks=("none",), view=View(resize=32, crop=28))
    (row,) = evaluate(evaluated, POOL, str(tmp_path / "evaluation")).to_pylist()
    assert (row["dataset"], row["n"]) == ("photos (resize 32, crop 28)", 40)
    with pytest.raises(ValueError, match=r"holds a run with resize = 32; this one has resize = None"):
        evaluate(dataclasses.replace(evaluated, view=View(crop=28)), POOL, str(tmp_path / "evaluation"))


def test_a_training_that_was_cut_off_draws_the_same_crops(tmp_path: Path) -> None:
    data = photographs(tmp_path / "photos", "train", 80)
    config = dataclasses.replace(TRAINING, data=data, epochs=2, batch=16, limit=None, validation=16)
    config = dataclasses.replace(config, view=View(resize=32, crop=28))
    train(config, ONE_WORKER, str(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for gone in ("checkpoints/checkpoint_000002", "model"):
        shutil.rmtree(tmp_path / "cut" / gone)
    (tmp_path / "cut/_SUCCESS").unlink()
    train(config, ONE_WORKER, str(tmp_path / "cut"))
    assert made(tmp_path / "cut") == made(tmp_path / "whole")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_engine_that_is_too_small_is_refused_before_the_old_run_is_removed(
    small_classifier: str, tmp_path: Path
) -> None:
    output, none = str(tmp_path / "run"), ("none",)
    config = EvaluationConfig(data="digits", limit=20, classifiers=(small_classifier,), attacks=none)
    evaluate(config, POOL, output)
    files = {url: storage.read_bytes(url) for url in storage.list_files(output)}
    lacking = dataclasses.replace(POOL, gpus_per_actor=1)
    for changed, overwrite in ((config, True), (dataclasses.replace(config, attacks=("fgsm",)), False)):
        with pytest.raises(ValueError, match="torch finds none on this machine"):
            evaluate(changed, lacking, output, overwrite=overwrite)
        assert {url: storage.read_bytes(url) for url in storage.list_files(output)} == files
