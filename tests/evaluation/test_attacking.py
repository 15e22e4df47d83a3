"""Attacks that begin in bfloat16: as strong, told in float32, and cells of their own."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import raypurify
from raypurify import models
from raypurify.attacks import Attack
from raypurify.attacks._active import margin
from raypurify.attacks.apgd import APGD
from raypurify.attacks.carlini_wagner import CarliniWagner
from raypurify.attacks.deepfool import DeepFool
from raypurify.attacks.pgd import PGD
from raypurify.attacks.stadv import StAdv
from raypurify.evaluation.attacking import attack_batch, is_mixed, settled
from raypurify.evaluation.grid import EvaluationConfig, build_grid


class Watched(nn.Module):
    """A victim that notes how many images it is asked about in each type."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.images = network, {"bfloat16": 0, "float32": 0}

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        self.images[str(logits.dtype).removeprefix("torch.")] += len(x)
        return logits


def made(attack: Attack, victim: nn.Module, precision: models.Precision) -> tuple[Tensor, Tensor, Tensor]:
    """What an attack makes of digits, beside them and their labels."""
    x, y = (torch.as_tensor(values) for values in raypurify.load_images("digits", limit=40))
    with torch.no_grad(), models.autocast("cpu", "float32"):
        attacked = attack_batch(attack, victim, x, y, seeds=range(40), device="cpu", precision=precision)
    return attacked.x_adv, x, y


@pytest.mark.parametrize("attack", [PGD(epsilon=0.06, steps=5), APGD(epsilon=0.06, steps=10)])
def test_an_attack_goes_on_in_float32_with_the_images_that_are_still_right(
    attack: Attack, small_classifier: str
) -> None:
    network = models.load_network(small_classifier)
    victim = Watched(network)
    x_adv, x, y = made(attack, victim, "bfloat16")
    assert (x_adv - x).abs().amax() <= 0.06 + 1e-6
    fooled = network(x_adv).argmax(dim=1) != y
    plain, _, _ = made(attack, network, "float32")
    assert fooled.sum() >= (network(plain).argmax(dim=1) != y).sum()
    assert victim.images["bfloat16"] >= 40
    assert 40 <= victim.images["float32"] <= 40 + victim.images["bfloat16"]


def test_what_bfloat16_cannot_fool_float32_does(small_classifier: str) -> None:
    """Noise of bfloat16's own hides this victim's gradient."""
    network = models.load_network(small_classifier)

    class Deaf(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = network(x)
            return logits if logits.dtype == torch.float32 else 0 * logits

    x_adv, _, y = made(PGD(epsilon=0.3, steps=10), Deaf(), "bfloat16")
    plain, _, _ = made(PGD(epsilon=0.3, steps=10), network, "float32")
    right = [(network(images).argmax(dim=1) == y).tolist() for images in (x_adv, plain)]
    assert right[0] == right[1]


@pytest.mark.parametrize(
    "attack",
    [DeepFool(), CarliniWagner(search_steps=3, steps=30), CarliniWagner(confidence=2.0, search_steps=3, steps=30)],
)
def test_an_attack_that_minimises_a_distance_judges_in_float32(attack: Attack) -> None:
    network = models.load_network("weights/mnist/a_net")
    victim = Watched(network)
    x_adv, x, y = made(attack, victim, "bfloat16")
    plain, _, _ = made(attack, network, "float32")
    right = network(x).argmax(dim=1) == y
    wrong = [network(images).argmax(dim=1) != y for images in (x_adv, plain)]
    assert torch.equal(*wrong)
    l2 = [(images - x).flatten(1).norm(dim=1)[right].median() for images in (x_adv, plain)]
    assert l2[0] <= 1.02 * l2[1]
    assert min(victim.images.values()) >= right.sum()
    if getattr(attack, "confidence", 0):
        fooled = right & wrong[0]
        assert margin(network(x_adv[fooled]), y[fooled]).amax() <= -2 + 1e-3


def test_only_attacks_that_stay_as_strong_compute_in_bfloat16(small_classifier: str) -> None:
    pytest.importorskip("torchattacks")
    from raypurify.attacks import torchattacks

    assert is_mixed(PGD(), "bfloat16")
    assert not is_mixed(PGD(), "float32")
    assert is_mixed(DeepFool(), "bfloat16")
    assert not is_mixed(StAdv(), "bfloat16")
    assert not is_mixed(torchattacks.build_named("PGD")(), "bfloat16")
    victim = Watched(models.load_network(small_classifier))
    made(StAdv(steps=3), victim, "bfloat16")
    assert victim.images["bfloat16"] == 0
    assert settled("auto", "cpu") == models.fast_precision("cpu")
    assert settled("auto", "cuda") == "bfloat16"


def test_it_is_a_cell_of_its_own(small_classifier: str) -> None:
    config = EvaluationConfig(
        data="digits",
        classifiers=(small_classifier,),
        purifiers=("threshold", "gaussian_noise"),
        attacks=("pgd,steps=2", "deepfool", "stadv"),
        settings=("white-box", "adaptive"),
    )
    grids = [
        build_grid(dataclasses.replace(config, attack_precision=precision), "digits", 100)
        for precision in ("float32", "bfloat16")
    ]
    differ = {
        (theirs.row["attack"], theirs.row["setting"], theirs.row["purifier"])
        for ours, theirs in zip(*(grid.cells for grid in grids), strict=True)
        if ours.hash != theirs.hash
    }
    assert differ == {
        ("pgd", "white-box", "threshold"),
        ("pgd", "white-box", "gaussian_noise"),
        ("pgd", "adaptive", "threshold"),
        ("deepfool", "white-box", "threshold"),
        ("deepfool", "white-box", "gaussian_noise"),
        ("deepfool", "adaptive", "threshold"),
    }
    assert [group.precision for group in grids[0].groups] == ["float32"] * len(grids[0].groups)


def test_a_job_takes_the_flag(small_classifier: str, small_purifier: str, tmp_path) -> None:
    flags = {"classifiers": [small_classifier], "purifiers": [small_purifier], "engine": "local", "data": "digits"}
    flags |= {"limit": 30, "settings": ["adaptive"], "attacks": ["pgd,epsilon=0.1,steps=3"], "masking_images": 0}
    found = [
        raypurify.evaluate(output=tmp_path / precision, attack_precision=precision, **flags).to_pylist()[0]
        for precision in ("float32", "bfloat16")
    ]
    assert found[1]["accuracy_purified"] <= found[0]["accuracy_purified"]
    assert '"attack_precision": "bfloat16"' in found[1]["params"]
    raypurify.attack(
        input="digits",
        limit=20,
        classifier=small_classifier,
        attack="pgd,epsilon=0.1,steps=3",
        attack_precision="bfloat16",
        output=tmp_path / "attacked",
        engine="local",
    )
    identity = raypurify.storage.read_json(str(tmp_path / "attacked/run.json"))["identity"]
    assert identity["attack_precision"] == "bfloat16"
