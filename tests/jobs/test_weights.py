"""The committed weights on the real MNIST, through a real evaluation."""

import os
from pathlib import Path

import pytest

from raypurify.evaluation.certification import CertificationConfig
from raypurify.evaluation.grid import EvaluationConfig
from raypurify.jobs.certify import certify
from raypurify.jobs.evaluate import evaluate
from raypurify.jobs.resources import ActorPool

WEIGHTS = Path(__file__).parents[2] / "weights" / "mnist"


@pytest.mark.skipif("RAYPURIFY_DATA" not in os.environ, reason="RAYPURIFY_DATA is unset: there is no real MNIST here")
@pytest.mark.parametrize(("name", "attacked"), [("a_net", 0.2), ("b_net", 0.45)])
def test_weights_keep_what_their_note_says(name: str, attacked: float, tmp_path: Path) -> None:
    config = EvaluationConfig(
        data="mnist",
        limit=200,
        classifiers=(str(WEIGHTS / name),),
        purifiers=(str(WEIGHTS / f"cru_net-{name}"),),
        attacks=("fgsm,epsilon=0.3", "pgd,epsilon=0.3,steps=10"),
    )
    resources = ActorPool(actors=1, local=True)
    for row in evaluate(config, resources, str(tmp_path / "run")).to_pylist():
        assert row["accuracy_clean"] >= 0.985
        assert row["accuracy_adversarial"] <= attacked
        assert row["accuracy_purified"] >= 0.93
        assert row["accuracy_clean_purified"] >= 0.97
        assert row["linf_max"] <= 0.3 + 1e-6


@pytest.mark.skipif("RAYPURIFY_DATA" not in os.environ, reason="RAYPURIFY_DATA is unset: there is no real MNIST here")
def test_the_adaptively_trained_purifier_withstands_who_knows_it(tmp_path: Path) -> None:
    config = EvaluationConfig(
        data="mnist",
        limit=100,
        classifiers=(str(WEIGHTS / "a_net"),),
        purifiers=tuple(str(WEIGHTS / name) for name in ("cru_net-a_net", "cru_net-a_net-adaptive")),
        attacks=("pgd,epsilon=0.3,steps=10",),
        settings=("adaptive",),
        masking_images=0,
    )
    usual, robust = evaluate(config, ActorPool(actors=1, local=True), str(tmp_path / "run")).to_pylist()
    assert usual["accuracy_purified"] <= 0.3
    assert robust["accuracy_purified"] >= 0.9
    assert robust["accuracy_clean_purified"] >= 0.98


@pytest.mark.skipif("RAYPURIFY_DATA" not in os.environ, reason="RAYPURIFY_DATA is unset: there is no real MNIST here")
def test_the_denoiser_makes_certificates_possible(tmp_path: Path) -> None:
    config = CertificationConfig(
        data="mnist",
        limit=20,
        classifiers=(str(WEIGHTS / "a_net"),),
        purifiers=("identity", str(WEIGHTS / "cru_net-a_net-denoiser-0.5")),
        sigmas=(0.5,),
        draws=150,
        guesses=20,
        radii=(0.5,),
        attack_images=0,
    )
    alone, denoised = certify(config, ActorPool(actors=1, local=True), str(tmp_path / "run")).to_pylist()
    assert alone["certified"] <= 0.5
    assert denoised["certified"] >= 0.8
