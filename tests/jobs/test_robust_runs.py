"""Runs of trainings that are to withstand an attacker who knows the network."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from test_train_runs import ONE_WORKER, TRAINING, lose_the_last_epoch, run_of, weights

import raypurify
from raypurify import models, storage
from raypurify.classifiers import b_net
from raypurify.data import View
from raypurify.evaluation.generation import GenerationConfig
from raypurify.jobs.attack import attack
from raypurify.jobs.resources import ActorPool
from raypurify.jobs.train import prepare, train
from raypurify.storage import checkpoints

PURIFIER = dataclasses.replace(
    TRAINING, model="cru_net,width=2", classifier="a/b", attacks=("fgsm,epsilon=0.1",), limit=200
)


@pytest.fixture(scope="module")
def other_classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """B-net with random weights."""
    folder = str(tmp_path_factory.mktemp("weights") / "small_b_net")
    torch.manual_seed(5)
    checkpoints.save(folder, {"kind": "classifier", "plugin": "b_net", "params": {}}, b_net.build().state_dict())
    return folder


def test_a_moving_average_is_scored_published_and_gone_on_with(tmp_path: Path) -> None:
    averaged = dataclasses.replace(TRAINING, ema=0.9, epochs=3)
    for name in ("undisturbed", "cut off"):
        train(averaged, ONE_WORKER, str(tmp_path / name))
    lose_the_last_epoch(tmp_path / "cut off")
    train(averaged, ONE_WORKER, str(tmp_path / "cut off"))
    for folder in ("model", "best"):
        assert weights(tmp_path / "cut off", folder) == weights(tmp_path / "undisturbed", folder)
    train(dataclasses.replace(averaged, ema=0.0), ONE_WORKER, str(tmp_path / "plain"))
    (kept,) = (tmp_path / "undisturbed/checkpoints").glob("checkpoint_000003")
    trained = safetensors.torch.load((kept / "optimizer.safetensors").read_bytes())
    plain = safetensors.torch.load(weights(tmp_path / "plain", "model"))
    for name, value in plain.items():
        assert torch.equal(trained[f"trained/{name}"], value), "the average changes nothing of the training"
    published = safetensors.torch.load(weights(tmp_path / "undisturbed", "model"))
    assert any(not torch.equal(published[name], value) for name, value in plain.items())
    metrics = [storage.read_json(str(tmp_path / name / "model/metrics.json")) for name in ("undisturbed", "plain")]
    assert metrics[0]["validation"] != metrics[1]["validation"]


def test_a_purifier_of_several_classifiers_is_none_of_them_strange(
    small_classifier: str, other_classifier: str, tmp_path: Path
) -> None:
    config = dataclasses.replace(PURIFIER, classifier=small_classifier, more_classifiers=(other_classifier,))
    config = dataclasses.replace(config, train_against="adaptive", label_weight=1.0, kl_weight=0.5, feature_weight=0.5)
    model = train(config, ONE_WORKER, str(tmp_path / "both"))
    alone = train(dataclasses.replace(config, more_classifiers=()), ONE_WORKER, str(tmp_path / "alone"))
    hashes = tuple(models.load("classifier", url).sha256 for url in (small_classifier, other_classifier))
    assert models.load("purifier", model).trained_for == hashes
    assert models.load("purifier", alone).trained_for == hashes[:1]
    identity = run_of(tmp_path / "both")["identity"]
    assert identity["more_classifiers_sha256"] == [models.load("classifier", other_classifier).identity]
    assert "more_classifiers" not in run_of(tmp_path / "alone")["identity"]
    with pytest.raises(ValueError, match="holds a run with more_classifiers_sha256 = "):
        train(dataclasses.replace(config, more_classifiers=(small_classifier,)), ONE_WORKER, str(tmp_path / "both"))
    summary = raypurify.evaluate(
        data="digits",
        limit=20,
        classifiers=[small_classifier, other_classifier],
        purifiers=[model, alone],
        attacks=["fgsm,epsilon=0.1"],
        settings=["white-box", "black-box"],
        output=tmp_path / "run",
        engine="local",
    )
    settings = [(row["classifier"], row["purifier"], row["setting"]) for row in summary.to_pylist()]
    assert sorted(settings) == [
        ("small_a_net", "alone", "white-box"),
        ("small_a_net", "both", "white-box"),
        ("small_b_net", "alone", "black-box"),
        ("small_b_net", "both", "white-box"),
    ]


def test_a_training_against_attacked_datasets_is_of_the_images_that_one_has(
    small_classifier: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"input": "digits", "split": "train", "classifier": small_classifier, "engine": "local"}
    for name, text, limit in (("fgsm", "fgsm,epsilon=0.1", 300), ("pgd", "pgd,epsilon=0.1,steps=2", 200)):
        raypurify.attack(attack=text, limit=limit, output=tmp_path / name, **flags)
    urls = ",".join(f'"{tmp_path / name}/images"' for name in ("fgsm", "pgd"))
    config = dataclasses.replace(
        PURIFIER, classifier=small_classifier, train_against=f"attacked,url=[{urls}]", limit=None
    )
    train(config, ONE_WORKER, str(tmp_path / "run"))
    told = capsys.readouterr().out
    assert "data: digits, train: 300 images of 10 classes" in told
    assert re.search(r"warning: trained on 300 of 1,\d{3} images: those that were attacked", told)
    raypurify.attack(attack="none", limit=20, output=tmp_path / "test", **{**flags, "split": "test"})
    strange = dataclasses.replace(config, train_against=f"attacked,url={tmp_path}/test/images,split=test")
    with pytest.raises(ValueError, match="has none of the images of digits; attack the data of this training"):
        train(strange, ONE_WORKER, str(tmp_path / "other"))


def test_photographs_that_were_attacked_are_shown_as_the_attack_showed_them(
    small_classifier: str, tmp_path: Path
) -> None:
    for number in range(80):
        path = tmp_path / "photos/train" / str(number % 10) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40 + number % 3, 50), 3 * number, np.uint8)).save(path)
    data = str(tmp_path / "photos")
    shown = GenerationConfig(
        input=data, split="train", attack="none", classifier=small_classifier, view=View(resize=32, crop=28)
    )
    attack(shown, ActorPool(local=True), str(tmp_path / "attacked"))
    url = f"{tmp_path}/attacked/images"
    config = dataclasses.replace(
        PURIFIER, data=data, classifier=small_classifier, train_against=f"attacked,url={url}", limit=None, validation=8
    )
    model = train(config, ONE_WORKER, str(tmp_path / "run"))
    told = storage.read_json(f"{model}/config.json")
    assert (told["view"], told["image_shape"]) == ({"resize": 32, "crop": 28}, [28, 28, 1])
    own = dataclasses.replace(config, train_against=f"attacked_digits:kept,url={url}")
    assert not prepare(own, ONE_WORKER).crops_at_random, "the attacked images lie beside crops that stay"
    fresh = dataclasses.replace(config, train_against="attacks", view=View(resize=32, crop=28))
    assert prepare(fresh, ONE_WORKER).crops_at_random
    with pytest.raises(ValueError, match="--resize 30: the images of train_against were attacked with --resize 32"):
        train(dataclasses.replace(config, view=View(resize=30)), ONE_WORKER, str(tmp_path / "other"))
    with pytest.raises(ValueError, match="has the attacked images; give the data that they were made from"):
        train(dataclasses.replace(config, data=url), ONE_WORKER, str(tmp_path / "other"))


def test_a_classifier_is_trained_against_attacks_on_itself(tmp_path: Path) -> None:
    robust = dataclasses.replace(TRAINING, train_against="adaptive,ramp=0.5", attacks=("pgd,epsilon=0.1,steps=3",))
    model = train(dataclasses.replace(robust, epochs=4, kl_weight=1.0), ONE_WORKER, str(tmp_path / "run"))
    config = storage.read_json(f"{model}/config.json")
    assert (config["kind"], config["trained_for"]) == ("classifier", None)
    metrics = storage.read_json(f"{model}/metrics.json")
    assert metrics["criterion"] == "accuracy_adversarial"
    assert 0.3 < metrics["validation"][-1]["accuracy_adversarial"] <= metrics["validation"][-1]["accuracy"]
