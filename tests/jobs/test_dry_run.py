"""What a job tells before its work: figures, from a few images, and nothing written."""

import dataclasses
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from raypurify.data import open_source
from raypurify.evaluation.generation import GenerationConfig
from raypurify.evaluation.grid import EvaluationConfig
from raypurify.images import encode_png
from raypurify.jobs import attack, evaluate, train
from raypurify.jobs.resources import ActorPool
from raypurify.runs import Destination
from raypurify.training.config import TrainingConfig
from raypurify.training.order import EpochOrder, epoch_batches


def of_evaluation(classifier: str, output: str, data: str = "digits") -> None:
    config = EvaluationConfig(data=data, classifiers=(classifier,), purifiers=("identity", "threshold"))
    evaluate.main(evaluate.EvaluationArguments(evaluation=config, destination=Destination(output=output), dry_run=True))


def of_attack(classifier: str, output: str, data: str = "digits") -> None:
    config = GenerationConfig(input=data, attack="fgsm,epsilon=0.1", classifier=classifier, png=True)
    attack.main(attack.AttackArguments(generation=config, destination=Destination(output=output), dry_run=True))


def of_training(classifier: str, output: str, data: str = "digits") -> None:
    config = TrainingConfig(
        data=data, model="cru_net,width=2", classifier=classifier, precision="float32", validation=0
    )
    train.main(train.TrainingArguments(training=config, destination=Destination(output=output), dry_run=True))


@pytest.mark.parametrize(
    ("run", "told"),
    [
        (of_evaluation, ["6", "297", "2 actor(s) of 1 CPU(s) each", "32 on cpu"]),
        (of_attack, ["297", "2 actor(s) of 1 CPU(s) each", "32 on cpu"]),
        (of_training, ["1500", "1 worker(s) of 2 CPU(s) each", "2 steps on cpu"]),
    ],
)
def test_a_dry_run_gives_figures_and_writes_nothing(
    run: Callable[[str, str], None],
    told: list[str],
    small_classifier: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run(small_classifier, str(tmp_path / "run"))
    printed = capsys.readouterr().out
    for words in (*told, "28x28x1", "10", "images per second", "estimated"):
        assert words in printed
    assert not list(tmp_path.iterdir())


def test_a_dry_run_refuses_what_the_job_would(small_classifier: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown name 'fgsmm'"):
        attack.dry_run(GenerationConfig(input="digits", attack="fgsmm", classifier=small_classifier), ActorPool())


@pytest.mark.parametrize("run", [of_evaluation, of_attack, of_training])
def test_a_dry_run_holds_the_data_against_the_networks(
    run: Callable[..., None], small_classifier: str, tmp_path: Path
) -> None:
    for index in range(60):
        path = tmp_path / "images" / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(np.full((28, 28, 1), index, np.uint8)))
    with pytest.raises(ValueError, match=r"knows 10 classes, and .* has 2: cat, dog"):
        run(small_classifier, str(tmp_path / "run"), data=str(tmp_path / "images"))
    assert not (tmp_path / "run").exists()


def test_the_first_batches_are_those_of_the_stream() -> None:
    source = open_source("digits", split="train", limit=None)
    one = EpochOrder(source=source, image_shape=(28, 28, 1), seed=0, batch=32)
    orders = [dataclasses.replace(one, rank=rank, workers=2) for rank in (0, 1)]
    parts = zip(*(epoch_batches(order, 0) for order in orders), strict=True)
    for whole, halves in islice(zip(epoch_batches(one, 0), parts, strict=True), 3):
        assert whole["image"].shape == (32, 28, 28, 1)
        assert np.array_equal(np.concatenate([half["image"] for half in halves]), whole["image"])
