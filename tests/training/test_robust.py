"""Trainings that are to withstand an attacker who knows the network: their losses, classifiers and averages."""

import copy
import dataclasses

import pytest
import torch
from test_training import CONFIG, batch, images, purifier_objective, small_classifier
from torch import nn
from torch.nn import functional as F

from raypurify.attacks import run
from raypurify.attacks.pgd import PGD
from raypurify.training.answers import divergence, inconsistency, last_linear, logits_and_features
from raypurify.training.average import Average
from raypurify.training.batches import Batch
from raypurify.training.config import TrainingConfig
from raypurify.training.objectives import (
    ClassifierObjective,
    PurifierObjective,
    RobustClassifierObjective,
    Setup,
    build_attacks,
    build_pairs,
    train_step,
    validate,
)


def deep_classifier(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 4))
    return network.eval().requires_grad_(False)


def with_classifiers(objective: PurifierObjective, *classifiers: nn.Module) -> PurifierObjective:
    setup = dataclasses.replace(objective.setup, classifier=classifiers[0], more_classifiers=classifiers[1:])
    return PurifierObjective(setup)


def test_divergence_is_that_of_clean_from_adversarial_answers() -> None:
    torch.manual_seed(0)
    clean, adversarial = torch.randn(5, 4), torch.randn(5, 4)
    p, q = clean.softmax(dim=1), adversarial.softmax(dim=1)
    assert divergence(clean, adversarial).item() == pytest.approx(
        (p * (p / q).log()).sum(dim=1).mean().item(), rel=1e-5
    )
    assert divergence(clean, clean).item() == pytest.approx(0, abs=1e-6)


def test_features_are_what_enters_the_last_linear_layer() -> None:
    network, x = deep_classifier(0), batch().x
    logits, features = logits_and_features(network, x)
    torch.testing.assert_close(features, network[:3](x))
    torch.testing.assert_close(logits, network(x))
    assert not network[3]._forward_pre_hooks
    with pytest.raises(ValueError, match="feature_weight: Flatten has no linear layer"):
        last_linear(nn.Flatten())


def test_each_loss_has_its_weight() -> None:
    weights = {"pixel_weight": 0.5, "label_weight": 2.0, "kl_weight": 3.0, "feature_weight": 4.0, "logit_weight": 5.0}
    weights["stability_weight"] = 6.0
    objective = with_classifiers(purifier_objective(0.0, **weights), deep_classifier(0))
    network, classifier = objective.setup.network, objective.setup.classifier
    nn.init.normal_(network.output.weight, std=0.3)
    data = batch()
    x_adv, x = objective.pairs(data)
    logits, features = logits_and_features(classifier, network(x_adv))
    expected = (
        0.5 * network.training_loss(x_adv, x)
        + 2 * F.cross_entropy(logits, data.y)
        + 3 * divergence(classifier(network(x)), logits)
        + 4 * F.mse_loss(features, classifier[:3](x))
        + 5 * (logits - classifier(x)).abs().mean()
        + 6 * F.cross_entropy(logits, classifier(x).argmax(dim=1))
    )
    torch.testing.assert_close(objective.loss(data), expected)


def test_a_loss_on_what_the_classifier_said_stands_alone_too() -> None:
    objective = with_classifiers(purifier_objective(0.0, pixel_weight=0.0, stability_weight=2.0), deep_classifier(0))
    network, classifier = objective.setup.network, objective.setup.classifier
    nn.init.normal_(network.output.weight, std=0.3)
    x_adv, x = objective.pairs(batch())
    expected = 2 * F.cross_entropy(classifier(network(x_adv)), classifier(x).argmax(dim=1))
    torch.testing.assert_close(objective.loss(batch()), expected)


def test_two_draws_of_an_image_are_held_against_their_mean() -> None:
    first, second = torch.randn(5, 4), torch.randn(5, 4)
    p, q = first.softmax(dim=1), second.softmax(dim=1)
    mean = (p + q) / 2
    expected = ((mean * (mean / p).log()).sum(dim=1) + (mean * (mean / q).log()).sum(dim=1)).mean() / 2
    assert inconsistency(first, second).item() == pytest.approx(expected.item(), rel=1e-5)
    assert inconsistency(first, first).item() == pytest.approx(0, abs=1e-6)


def test_both_draws_count_in_every_loss() -> None:
    weights = {"pixel_weight": 0.5, "label_weight": 2.0, "kl_weight": 3.0, "consistency_weight": 4.0}
    noise = "noise,sigma=0.5,clip=false"
    objective = with_classifiers(
        purifier_objective(0.0, noise, augmentation="flip_crop", **weights), deep_classifier(0), deep_classifier(1)
    )
    network, data = objective.setup.network, images(20)
    nn.init.normal_(network.output.weight, std=0.3)
    x_adv, x = objective.pairs(data, 2)
    torch.testing.assert_close(x[:20], x[20:])
    assert ((x_adv - x).std() - 0.5).abs() < 0.05
    assert not torch.allclose(x_adv[:20], x_adv[20:])
    torch.testing.assert_close(objective.pairs(data)[0], x_adv[:20])
    varied = with_classifiers(purifier_objective(0.4, "noise,sigma=0.5,least=0.01,clip=false"), deep_classifier(0))
    noise = torch.sub(*varied.pairs(data, 2))
    sizes = noise.std(dim=(1, 2, 3)).view(2, 20)
    assert (sizes[0] == 0).any(), "clean ones"
    torch.testing.assert_close(sizes[0], sizes[1], rtol=0.6, atol=0, msg="of one size, or clean, in both draws")
    assert not torch.equal(noise[:20], noise[20:])
    expected = 0.5 * network.training_loss(x_adv, x)
    for classifier, own in objective.shared_out(data):
        draws = [classifier(network(part[own])) for part in (x_adv[:20], x_adv[20:])]
        logits, clean = torch.cat(draws), classifier(network(x[:20][own]))
        answers = 2 * F.cross_entropy(logits, data.y[own].repeat(2)) + 3 * divergence(clean.repeat(2, 1), logits)
        expected = expected + len(own) / 20 * (answers + 4 * inconsistency(*draws))
    torch.testing.assert_close(objective.loss(data), expected)


def test_a_loss_on_logits_stands_alone_too() -> None:
    objective = with_classifiers(purifier_objective(0.0, pixel_weight=0.0, logit_weight=2.0), deep_classifier(0))
    network, classifier = objective.setup.network, objective.setup.classifier
    nn.init.normal_(network.output.weight, std=0.3)
    x_adv, x = objective.pairs(batch())
    expected = 2 * (classifier(network(x_adv)) - classifier(x)).abs().mean()
    torch.testing.assert_close(objective.loss(batch()), expected)


def test_each_image_is_of_the_classifier_that_its_seed_picks() -> None:
    first, second = deep_classifier(0), deep_classifier(1)
    weights = {"label_weight": 1.0, "kl_weight": 1.0, "pixel_weight": 0.0}
    both = with_classifiers(purifier_objective(0.0, "adaptive", augmentation="flip_crop", **weights), first, second)
    nn.init.normal_(both.setup.network.output.weight, std=0.3)
    data = images(200)
    parts = both.shared_out(data)
    rows = [own.tolist() for _, own in parts]
    assert sorted(rows[0] + rows[1]) == list(range(200))
    assert 80 < len(rows[0]) < 120
    assert [own.tolist() for _, own in both.shared_out(data.taken(range(50)))] == [
        [row for row in own if row < 50] for own in rows
    ]
    data = batch(24)
    losses = 0.0
    for classifier, own in both.shared_out(data):
        alone = with_classifiers(both, classifier)
        part = data.taken(own.tolist())
        torch.testing.assert_close(both.pairs(data)[0][own], alone.pairs(part)[0])
        losses = losses + len(own) / 24 * alone.loss(part)
    torch.testing.assert_close(both.loss(data), losses)
    sums = validate(both, iter([data]))
    assert 0 <= sums["accuracy_purified"] <= 24


def robust(against: str, network: nn.Module, **changes: object) -> RobustClassifierObjective:
    config = dataclasses.replace(CONFIG, train_against=against, clean_share=0.0, rate=1e-2, **changes)
    setup = Setup(
        config=config,
        network=network,
        attacks=build_attacks(["pgd,epsilon=0.05,steps=3"]),
        pairs=build_pairs(against),
        total_steps=150,
        device="cpu",
    )
    return RobustClassifierObjective(setup)


def two_kinds_of_features() -> Batch:
    """Images whose first pixels tell the class by more than the attack's radius, but in nine of ten only; all others
    tell it always, by less."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (200,), generator=generator)
    signs = (2.0 * y - 1)[:, None].expand(200, 64) * 0.02
    wrong = torch.rand(200, generator=generator) < 0.1
    signs = torch.cat([(2.0 * torch.where(wrong, 1 - y, y) - 1)[:, None].expand(200, 2) * 0.2, signs[:, 2:]], dim=1)
    return Batch(x=(0.5 + signs).view(200, 1, 8, 8), y=y, seeds=range(200))


def test_a_classifier_is_trained_against_attacks_on_itself() -> None:
    data = two_kinds_of_features()
    usual = ClassifierObjective(dataclasses.replace(robust("adaptive", small_classifier()).setup, pairs=None))
    objective = robust("adaptive", small_classifier())
    assert (objective.pairs(data)[0] - data.x).abs().amax().item() == pytest.approx(0.05, abs=1e-6)
    for step in range(150):
        train_step(usual, data, step)
        train_step(objective, data, step)
    sums = validate(objective, iter([data]))
    assert sums["accuracy"] == sums["accuracy_adversarial"] == pytest.approx(180, abs=12)
    network = usual.setup.network
    x_adv = run(PGD(epsilon=0.05, steps=3), network, data.x, data.y).x_adv
    assert (network(x_adv).argmax(dim=1) == data.y).sum() < sums["accuracy_adversarial"] - 50


def test_trades_loss_stands_beside_the_cross_entropy() -> None:
    objective, data = robust("adaptive", small_classifier(), kl_weight=6.0), batch()
    x_adv, x = objective.pairs(data)
    logits = objective.setup.network(x_adv)
    expected = F.cross_entropy(logits, data.y) + 6 * divergence(objective.setup.network(x), logits)
    torch.testing.assert_close(objective.loss(data), expected)


def test_a_classifier_is_trained_on_noise() -> None:
    objective = robust("noise,sigma=0.2", small_classifier())
    changes = objective.pairs(images(200))[0] - 0.5
    assert changes.std().item() == pytest.approx(0.2, rel=0.1)


def test_an_average_follows_the_weights() -> None:
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    network[0].weight.data.fill_(1.0)
    average = Average(network, 0.5)
    for step, value in enumerate((2.0, 4.0), start=1):
        network[0].weight.data.fill_(value)
        network[1].num_batches_tracked.fill_(step)
        average.update(step)
    early = 1 + (2 - 1) * (1 - 2 / 11)
    assert average.state["0.weight"].item() == pytest.approx(early + (4 - early) * (1 - 3 / 12))
    assert average.state["1.num_batches_tracked"].item() == 2
    kept = copy.deepcopy(average.state)
    with average.applied():
        assert network[0].weight.item() == kept["0.weight"].item()
    assert network[0].weight.item() == 4
    again = Average(network, 0.5)
    again.restore(kept)
    assert again.state["0.weight"].item() == kept["0.weight"].item()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"kl_weight": -1.0, "classifier": "a/b"}, "weights of losses must be at least 0"),
        ({"pixel_weight": 0.0, "classifier": "a/b"}, "one of them above; got pixel_weight = 0.0"),
        ({"ema": 1.0}, "ema must be at least 0 and below 1"),
        ({"kl_weight": 1.0}, "kl_weight = 1.0 would change nothing: .* trained, on clean images"),
        ({"label_weight": 1.0, "train_against": "adaptive"}, "label_weight = 1.0 would .* against adversarial ones"),
        ({"more_classifiers": ("a/b",)}, "more_classifiers = .* would change nothing"),
        ({"train_against": "adaptive", "attacks": ()}, "at least one attack to train against"),
    ],
)
def test_flags_that_say_nothing_are_refused(flags: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(data="digits", model="a_net", **flags)
