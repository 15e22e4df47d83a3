"""What comes from a package outside the project works as what the project carries: in a training and an evaluation."""

import dataclasses
import json
from html import unescape
from pathlib import Path

import pytest
import safetensors.torch

from raypurify import storage
from raypurify.evaluation.grid import EvaluationConfig
from raypurify.jobs.evaluate import EvaluationArguments, evaluate
from raypurify.jobs.resources import ActorPool, TrainingResources
from raypurify.jobs.train import train
from raypurify.runs import Destination
from raypurify.training.config import TrainingConfig


@pytest.fixture(scope="module")
def trained(local_ray: None, small_classifier: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The run of a purifier, its objective and its pairs from ``additions``, by 1 and by 2 workers."""
    config = TrainingConfig(
        data="digits",
        model="additions:Watchful",
        classifier=small_classifier,
        train_against="additions:Faded,strength=0.5",
        epochs=2,
        batch=32,
        limit=128,
        validation=16,
        precision="float32",
    )
    outputs = {}
    for workers in (1, 2):
        outputs[workers] = str(tmp_path_factory.mktemp("additions") / "run")
        train(config, TrainingResources(workers=workers, cpus_per_worker=1, local=workers == 1), outputs[workers])
    return outputs


def test_an_objective_and_pairs_of_the_users_train_alike_whatever_the_workers(trained: dict[int, str]) -> None:
    curves = [storage.read_table(storage.join(output, "metrics.parquet")).to_pandas() for output in trained.values()]
    for name in ("loss", "loss_critic"):
        assert curves[0][name].tolist() == pytest.approx(curves[1][name].tolist(), rel=1e-4)
    assert curves[0]["loss_critic"].nunique() == len(curves[0])
    weights = [safetensors.torch.load_file(Path(output, "model/model.safetensors")) for output in trained.values()]
    assert weights[0].keys() == {"convolution.weight", "convolution.bias"}, "the critic stays with the training"
    saved = max(Path(trained[2], "checkpoints").glob("checkpoint_*/optimizer.safetensors"))
    names = set(safetensors.torch.load_file(saved))
    assert {"0.exp_avg", "critic/0.exp_avg", "networks/critic/1.weight"} <= names
    identity = storage.read_json(storage.join(trained[1], "run.json"))["identity"]
    assert identity["train_against"] == "additions:Faded,strength=0.5"
    page = Path(trained[1], "report.html").read_text()
    for text in ('<section id="training"', "additions:Watchful", "additions:Faded,strength=0.5"):
        assert text in page


def test_a_format_an_attack_a_detector_a_metric_and_a_section_of_the_users(
    trained: dict[int, str], small_classifier: str, tmp_path: Path
) -> None:
    purifier = f"{trained[1]}/model,plugin=additions:Watchful"
    config = EvaluationConfig(
        data="additions:drawings",
        classifiers=(small_classifier,),
        purifiers=(purifier, "additions:Dimmer"),
        attacks=("none", "additions:Darken"),
        epsilons=(0.05, 0.1),
        settings=("white-box", "adaptive"),
        adaptive_attacks=("pgd,steps=5",),
        adaptive_purifiers=(purifier,),
        masking_images=0,
        metrics=("additions:brightness,scale=255",),
    )
    output = str(tmp_path / "run")
    sections = ("additions:section",)
    evaluate(config, ActorPool(actors=1), output, sections=sections)
    every = storage.read_table(storage.join(output, "summary.parquet")).to_pylist()
    rows = [row for row in every if row["setting"] == "white-box"]
    assert {(row["attack"], row["eps"], row["radius"]) for row in rows} == {
        ("none", None, None),
        ("additions:Darken", 0.05, "by"),
        ("additions:Darken", 0.1, "by"),
    }
    assert all(json.loads(row["params"])["by"] == row["eps"] for row in rows if row["eps"])
    assert all(-255 <= row["brightness_adversarial"] < 0 for row in rows if row["eps"])
    assert {(row["dataset"], row["n"]) for row in rows} == {("additions:drawings", 40)}
    assert {(row["purifier"], row["trivial"]) for row in rows} == {("run", False), ("additions:Dimmer", True)}
    for row in rows:
        detects = row["purifier"] != "additions:Dimmer"
        assert (row["false_alarm_rate"] is not None) == detects
        assert not detects or 0 < row["detection_rate"] < 1
        assert not detects or row["accuracy_with_detection"] > row["accuracy_purified"] or row["attack"] == "none"
    evading = [row for row in every if row["setting"] == "adaptive"]
    assert len(evading) == 2
    assert all(row["detection_rate"] < row["false_alarm_rate"] for row in evading), "who knows the detector evades it"
    page = unescape(Path(output, "report.html").read_text())
    for text in (
        "additions:drawings",
        "additions:Darken",
        "additions:Dimmer",
        "A section of mine",
        'href="#mine"',
        "<b>run</b>",
        "Brightness<br>",
        "brightness_purified",
        "Right or<br>detected",
    ):
        assert text in page
    assert page.index("A section of mine") < page.index("How to read this</h2>")
    with pytest.raises(ValueError, match=r"holds a run with metrics = .* this one has metrics = None"):
        evaluate(dataclasses.replace(config, metrics=()), ActorPool(actors=1), output)


def test_a_section_that_is_not_there_is_refused_before_any_work() -> None:
    evaluation = EvaluationConfig(data="digits", classifiers=("x",))
    for name, message in (("masking", "expected my_package"), ("additions:nothing", "has no callable 'nothing'")):
        with pytest.raises(ValueError, match=message):
            EvaluationArguments(evaluation=evaluation, destination=Destination(output="x"), sections=(name,))
