"""The defenses of other papers: MagNet, Defense-GAN, DRAGAN-Defense, DDSA and cGAN-Defense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import raypurify
from raypurify import models
from raypurify.attacks import Composite, detect
from raypurify.attacks._gradients import input_gradient
from raypurify.attacks.pgd import PGD
from raypurify.jobs.resources import TrainingResources
from raypurify.jobs.train import train
from raypurify.plugins import Spec
from raypurify.purifiers import cgan_defense, ddsa, defense_gan, dragan_defense, magnet
from raypurify.training.batches import Batch
from raypurify.training.config import TrainingConfig
from raypurify.training.objectives import Setup, build_pairs, train_step

ONE_WORKER = TrainingResources(cpus_per_worker=1, local=True)
MODELS = {
    "magnet": "magnet,drop=0.05",
    "defense_gan": "defense_gan,width=2,latent=8,restarts=2,steps=5",
    "dragan_defense": "dragan_defense,width=2,latent=8,restarts=2,steps=5",
    "ddsa": "ddsa,width=4",
    "cgan_defense": "cgan_defense,width=4",
}


def training(name: str, classifier: str, **changes: Any) -> TrainingConfig:
    usual: dict[str, Any] = {"epochs": 2, "batch": 64, "limit": 192, "validation": 64, "precision": "float32"}
    return TrainingConfig(
        data="digits",
        model=MODELS[name],
        classifier=classifier,
        attacks=("fgsm,epsilon=0.1",),
        seed=3,
        **{**usual, **changes},
    )


def images(count: int = 6, side: int = 28) -> Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
def test_a_defense_is_trained_evaluated_and_cleans(name: str, small_classifier: str, tmp_path: Path) -> None:
    model = train(training(name, small_classifier), ONE_WORKER, str(tmp_path / "run"))
    first, last = (
        saved["loss"].to_numpy()[which].mean()
        for saved, which in ((_curve(tmp_path), slice(0, 2)), (_curve(tmp_path), slice(-2, None)))
    )
    assert np.isfinite([first, last]).all()
    if name in ("magnet", "ddsa", "cgan_defense"):
        assert last < first
    summary = raypurify.evaluate(
        data="digits",
        limit=8,
        classifiers=[small_classifier],
        purifiers=[model],
        attacks=["fgsm,epsilon=0.1"],
        settings=["white-box", "adaptive"],
        eot=1,
        masking_images=0,
        output=tmp_path / "evaluation",
        engine="local",
    ).to_pylist()
    assert [row["setting"] for row in summary] == ["white-box", "adaptive"]
    assert all((row["detection_rate"] is not None) == (name == "magnet") for row in summary)
    (tmp_path / "in").mkdir()
    raypurify.attack(
        input="digits",
        attack="none",
        classifier=small_classifier,
        limit=3,
        output=tmp_path / "attacked",
        engine="local",
    )
    raypurify.clean(input=tmp_path / "attacked/images", purifier=model, output=tmp_path / "clean", engine="local")
    assert list((tmp_path / "clean/images").rglob("*.parquet"))


def _curve(folder: Path) -> Any:
    from raypurify import storage

    return storage.read_table(str(folder / "run/metrics.parquet"))


@pytest.mark.parametrize("name", ["defense_gan", "dragan_defense", "cgan_defense"])
def test_weight_decay_of_a_gan_is_no_part_of_the_gradients(name: str) -> None:
    """Adam would make it one, and scale it as it scales them."""
    decay = 0.5

    def after_a_step(weight_decay: float) -> tuple[list[Tensor], list[Tensor], float]:
        torch.manual_seed(0)
        spec = Spec.parse(MODELS[name])
        objective = models.beside("purifier", spec, "objective")(
            Setup(
                config=TrainingConfig(data="digits", model=MODELS[name], weight_decay=weight_decay),
                network=models.untrained("purifier", spec),
                total_steps=10,
                device="cpu",
                pairs=build_pairs("noise"),
            )
        )
        players = (objective.setup.network, *objective.networks.values())
        weights = [weight for player in players for weight in player.parameters()]
        before = [weight.clone() for weight in weights]
        # The players' steps: the generator takes its own after its critic's.
        step = getattr(objective, "critic_steps", 1) - 1
        train_step(objective, Batch(x=images(), y=torch.arange(6), seeds=range(6)), step)
        return before, weights, objective.optimizations["network"].rate(step)

    before, plain, rate = after_a_step(0.0)
    _, decayed, _ = after_a_step(decay)
    for start, without, with_decay in zip(before, plain, decayed, strict=True):
        expected = without - rate * decay * start if start.ndim > 1 else without
        assert (with_decay - expected).abs().median() < 1e-3 * rate


@pytest.mark.parametrize("name", ["defense_gan", "cgan_defense", "magnet"])
def test_a_training_of_several_players_goes_on_to_the_same_weights(
    name: str, small_classifier: str, tmp_path: Path
) -> None:
    config = training(name, small_classifier, epochs=3)
    whole = train(config, ONE_WORKER, str(tmp_path / "whole"))
    train(training(name, small_classifier, epochs=3), ONE_WORKER, str(tmp_path / "cut"))
    import shutil

    for lost in ("checkpoints/checkpoint_000003", "model", "_SUCCESS"):
        path = tmp_path / "cut" / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = train(config, ONE_WORKER, str(tmp_path / "cut"))
    one, other = (models.load("purifier", url).state for url in (whole, again))
    assert one is not None
    assert other is not None
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_magnets_thresholds_flag_a_share_of_the_held_out_images(small_classifier: str, tmp_path: Path) -> None:
    model = models.load("purifier", train(training("magnet", small_classifier), ONE_WORKER, str(tmp_path / "run")))
    assert model.trained_for == ()
    network = model.build()
    assert network.thresholds.isfinite().all()
    x, _ = raypurify.load_images("digits", limit=200)
    shares = (network.evidence(x, None) > network.thresholds).float().mean(dim=0)
    assert all(0 < share < 0.25 for share in shares.tolist()), "five in a hundred of the held-out images"


def test_each_of_magnets_thresholds_is_exceeded_by_its_share() -> None:
    network = magnet.build(drop=0.003)
    config = TrainingConfig(data="digits", model="magnet")
    objective = magnet.objective(Setup(config=config, network=network, total_steps=1, device="cpu"))
    evidence = torch.rand(1000, len(network.drops), generator=torch.Generator().manual_seed(0))
    objective.calibrate(evidence)
    assert (evidence > network.thresholds).sum(dim=0).tolist() == [3] * len(network.drops)


def test_magnet_needs_held_out_images(small_classifier: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"magnet,drop=0\.05: something of it is set on held-out images"):
        train(training("magnet", small_classifier, validation=0), ONE_WORKER, str(tmp_path / "run"))


def test_magnets_divergence_asks_the_classifier_behind_it() -> None:
    network = magnet.build(temperatures=(10.0,)).eval()
    network.thresholds.copy_(torch.tensor([torch.inf, torch.inf, 1e-4]))
    x = images()
    answers = iter([torch.eye(10)[[0] * 6] * 40, torch.eye(10)[[0, 0, 0, 1, 1, 1]] * 40])
    assert detect(network, x, range(6), lambda _: next(answers)).tolist() == [False] * 3 + [True] * 3  # type: ignore[union-attr,arg-type]
    assert not network.detect(x).any(), "without a classifier there is nothing to compare"


class Bright(nn.Module):
    """A purifier that changes nothing, and suspects bright images."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def suspicion(self, x: Tensor) -> Tensor:
        return x.flatten(1).mean(dim=1) - 0.5

    def detect(self, x: Tensor) -> Tensor:
        return self.suspicion(x) > 0


def test_an_attacker_who_knows_a_detector_evades_it() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.stack([-torch.ones(64), torch.ones(64)]))
        linear.bias.copy_(torch.tensor([64.0 * 0.47, -64.0 * 0.47]))
    classifier = nn.Sequential(nn.Flatten(), linear).eval().requires_grad_(False)
    x, y = 0.42 + 0.06 * images(20, side=8), torch.zeros(20, dtype=torch.int64)
    assert (classifier(x).argmax(dim=1) == y).all()
    attack = PGD(epsilon=0.1, steps=30, random_start=False)
    found = {}
    for name, victim in (("blind", classifier), ("knowing", Composite(classifier, Bright()))):
        x_adv = attack(victim, x, y, seeds=range(20)).x_adv
        wrong, detected = classifier(x_adv).argmax(dim=1) != y, Bright().detect(x_adv)
        assert wrong.all()
        found[name] = detected.float().mean().item()
    assert found["blind"] > 0.9
    assert found["knowing"] < 0.1
    gradient, ahead = input_gradient(Composite(classifier, Bright()), x + 0.2, y)
    assert (ahead > 0).all(), "what is detected is not fooled"
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_a_projection_is_each_image_s_own_and_its_nearest_restart_s() -> None:
    torch.manual_seed(0)
    network = defense_gan.build(width=4, latent=16, restarts=5, steps=30).eval().requires_grad_(False)
    x, seeds = images(), list(range(6))
    whole = network(x, seeds)
    alone = torch.cat([network(x[row : row + 1], [seeds[row]]) for row in range(6)])
    torch.testing.assert_close(whole, alone, atol=1e-4, rtol=1e-4)

    def errors(made: Tensor) -> Tensor:
        return (made - x).flatten(1).square().mean(dim=1)

    assert (errors(network.project(x, seeds, steps=1)) > errors(whole)).all()
    assert (errors(network.project(x, seeds, restarts=1)) >= errors(whole) - 1e-6).all()
    assert not torch.equal(network(x, [seed + 1 for seed in seeds]), whole)


def test_a_projection_equals_a_descent_of_one_image_after_the_other() -> None:
    """Written out again: momentum, a rate that falls, and the best of the restarts."""
    torch.manual_seed(0)
    network = defense_gan.build(width=2, latent=8, restarts=3, steps=10, rate=2.0).eval().requires_grad_(False)
    x, seeds = images(3), [5, 6, 7]
    expected = []
    for image, seed in zip(x, seeds, strict=True):
        candidates = []
        for restart in range(3):
            z = defense_gan_latent(seed, restart, network)
            velocity = torch.zeros_like(z)
            for step in range(10):
                z.requires_grad_(True)
                slope = torch.autograd.grad((network.generator(z) - image[None]).square().mean(), z)[0]
                velocity = 0.7 * velocity - (2.0 if step < 8 else 0.2) * slope
                z = z.detach() + velocity
            made = network.generator(z)[0]
            candidates.append(((made - image).square().mean().item(), made))
        expected.append(min(candidates, key=lambda candidate: candidate[0])[1])
    torch.testing.assert_close(network(x, seeds), torch.stack(expected), atol=1e-4, rtol=1e-4)


def defense_gan_latent(seed: int, restart: int, network: Any) -> Tensor:
    from raypurify.purifiers._generative import latents
    from raypurify.seeds import derive

    return latents(derive([seed], restart), network.config, torch.device("cpu"))


def test_an_unrolled_descent_has_a_gradient_and_the_other_none() -> None:
    for unrolled in (True, False):
        torch.manual_seed(0)
        network = defense_gan.build(width=2, latent=8, restarts=2, steps=4, unrolled=unrolled).eval()
        network.requires_grad_(False)
        assert network.differentiable is unrolled
        x = images(2).requires_grad_(True)
        restored = network(x, [0, 1])
        assert restored.requires_grad is unrolled
        if unrolled:
            assert torch.autograd.grad(restored.sum(), x)[0].abs().sum() > 0


def test_what_changes_no_weight_may_be_given_beside_a_checkpoint(small_classifier: str, tmp_path: Path) -> None:
    url = train(training("dragan_defense", small_classifier, epochs=1), ONE_WORKER, str(tmp_path / "run"))
    usual, short = (models.load("purifier", text) for text in (url, f"{url},restarts=1,steps=2"))
    assert (short.name, short.build().config.steps) == ("run,restarts=1,steps=2", 2)
    assert short.identity != usual.identity
    with pytest.raises(
        ValueError, match="here plugin, restarts, steps, rate, momentum, unrolled may be given, got width"
    ):
        models.load("purifier", f"{url},width=8")


@pytest.mark.parametrize("build", [ddsa.build, cgan_defense.build, magnet.build])
def test_sides_of_any_length_come_back_as_they_were(build: Any) -> None:
    network = build().eval()
    for height, width in ((28, 28), (13, 18), (7, 5)):
        x = torch.rand(2, 1, height, width)
        restored = network(x)
        assert restored.shape == x.shape
        assert 0 <= restored.min() <= restored.max() <= 1


def test_settings_that_cannot_be_are_refused() -> None:
    for build, wrong in (
        (magnet.build, {"drop": 0.0}),
        (magnet.build, {"temperatures": (0.0,)}),
        (defense_gan.build, {"restarts": 0}),
        (dragan_defense.build, {"momentum": 1.0}),
        (ddsa.build, {"rho": 1.0}),
        (cgan_defense.build, {"l1_weight": -1.0}),
    ):
        with pytest.raises(ValueError, match=str(next(iter(wrong)))):
            build(**wrong)
