"""Every attack, one table: a new file in raypurify/attacks is tested on arrival."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from raypurify import plugins
from raypurify.attacks import Attack, Attacked, counted, radius_of, run_attack
from raypurify.attacks._active import margin
from raypurify.attacks._gradients import input_gradient
from raypurify.attacks.fgsm import FGSM
from raypurify.attacks.pgd import PGD
from raypurify.attacks.pgd_l2 import PGDL2
from raypurify.attacks.r_fgsm import RFGSM

NAMES = plugins.known("raypurify.attacks")
STRONG = [name for name in NAMES if name != "none"]


@pytest.fixture(scope="module")
def victim() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 12 * 12, 5))
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> Tensor:
    x = torch.rand(9, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    x[:, :, :4] = 0  # black pixels, on the edge of the box
    return x


@pytest.fixture(scope="module")
def labels(victim: nn.Module, images: Tensor) -> Tensor:
    return victim(images).argmax(dim=1)


QUICK = {
    "auto_attack": {"steps": 20, "queries": 100},
    "carlini_wagner": {"search_steps": 3, "steps": 40},
    "fab": {"steps": 20},
    "square": {"queries": 400},
}
"""Parameters where the defaults take long."""


def build(name: str, **params: object) -> Attack:
    return plugins.build("raypurify.attacks", plugins.Spec(name=name, params={**QUICK.get(name, {}), **params}))


@pytest.mark.parametrize("name", NAMES)
def test_stays_in_the_ball_and_in_the_box(name: str, victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    attack = build(name)
    before = images.clone()
    attacked = attack(victim, images, labels, seeds=range(9))
    x_adv = attacked.x_adv
    assert x_adv.shape == images.shape
    assert x_adv.dtype == torch.float32
    assert not x_adv.requires_grad
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    if attack.norm == "linf":
        radius = radius_of(attack)
        assert radius is not None
        assert (x_adv - images).abs().max() <= radius + 1e-6
    elif attack.norm == "l2" and (radius := radius_of(attack)) is not None:
        assert (x_adv - images).flatten(1).norm(dim=1).max() <= radius + 1e-6
    assert torch.equal(images, before)
    assert attacked.steps.shape == attacked.queries.shape == (9,)
    assert attacked.steps.dtype == attacked.queries.dtype == torch.int64


@pytest.mark.parametrize("name", STRONG)
def test_fools_the_victim(name: str, victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    x_adv = build(name)(victim, images, labels, seeds=range(9)).x_adv
    assert (victim(x_adv).argmax(dim=1) == labels).float().mean() <= 0.2


@pytest.mark.parametrize("name", STRONG)
def test_goes_towards_a_target(name: str, victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    target = (labels + 1) % 5
    x_adv = build(name)(victim, images, labels, seeds=range(9), target=target).x_adv
    before = torch.log_softmax(victim(images), dim=1)[range(9), target]
    after = torch.log_softmax(victim(x_adv), dim=1)[range(9), target]
    there = victim(x_adv).argmax(dim=1) == target  # an attack by margins may get there with a smaller share of its own
    assert ((after > before) | there).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_image_does_not_depend_on_its_batch(name: str, victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    attack, seeds = build(name), list(range(100, 109))
    together = attack(victim, images, labels, seeds=seeds).x_adv
    order = torch.tensor([4, 0, 8, 2, 6, 1, 7, 3, 5])
    for size in (1, 4):
        parts = [
            attack(victim, images[rows], labels[rows], seeds=[seeds[row] for row in rows]).x_adv
            for rows in order.split(size)
        ]
        torch.testing.assert_close(torch.cat(parts), together[order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["r_fgsm", "pgd", "apgd", "square", "auto_attack"])
def test_randomness_is_the_seeds_alone(name: str, victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    attack = build(name, steps=1) if name == "pgd" else build(name)
    state = torch.get_rng_state()
    first = attack(victim, images, labels, seeds=range(9)).x_adv
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(first, attack(victim, images, labels, seeds=range(9)).x_adv)
    assert not torch.equal(first, attack(victim, images, labels, seeds=range(1, 10)).x_adv)


class Flat(nn.Module):
    """Logits without a slope anywhere, as of a purifier that rounds; those of a pixel that is no number are numbers."""

    def __init__(self, victim: nn.Module) -> None:
        super().__init__()
        self.victim = victim

    def forward(self, x: Tensor) -> Tensor:
        return 100 * self.victim((x > 0.5).float()) + 0 * x.nan_to_num().sum()


@pytest.mark.parametrize("name", NAMES)
def test_images_without_a_gradient_stay_images(name: str, victim: nn.Module, images: Tensor) -> None:
    flat = Flat(victim)
    labels = flat(images).argmax(dim=1)
    attacked = build(name)(flat, images, labels, seeds=range(9))
    x_adv = attacked.x_adv
    assert attacked.zero_gradient is None or attacked.zero_gradient.all()
    assert x_adv.isfinite().all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_tells_where_the_gradient_was_zero(name: str, victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    attacked = build(name)(victim, images, labels, seeds=range(9))
    assert (attacked.zero_gradient is None) == (name in ("none", "rotation_translation", "square"))
    assert attacked.zero_gradient is None or not attacked.zero_gradient.any()


class Scaled(nn.Module):
    """The same decisions with larger logits."""

    def __init__(self, victim: nn.Module, scale: float) -> None:
        super().__init__()
        self.victim, self.scale = victim, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.victim(x)


@pytest.mark.parametrize("name", ["fgsm", "r_fgsm", "pgd", "apgd", "fab"])
@pytest.mark.parametrize("targeted", [False, True])
def test_the_scale_of_the_logits_hides_no_gradient(
    name: str, targeted: bool, victim: nn.Module, images: Tensor, labels: Tensor
) -> None:
    target = (labels + 1) % 5 if targeted else None
    large = Scaled(victim, 1e4)
    attacked = build(name)(large, images, labels, seeds=range(9), target=target)
    assert not attacked.zero_gradient.any()
    predictions = victim(attacked.x_adv).argmax(dim=1)
    if target is None:
        assert (predictions == labels).float().mean() <= 0.2
        _, ahead = input_gradient(large, images, labels)
        assert (ahead > 17).all(), "the plain cross-entropy has a gradient here"
    else:
        assert (predictions == target).float().mean() >= 0.5


def test_pgd_returns_the_best_iterate_of_each_image(victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    def ahead(x_adv: Tensor) -> Tensor:
        return margin(victim(x_adv), labels)

    # The same start and step: the iterates of the shorter runs are the first ones of the longer.
    reached = torch.stack(
        [
            ahead(PGD(epsilon=0.1, step_size=0.15, steps=steps)(victim, images, labels, seeds=range(9)).x_adv)
            for steps in range(1, 9)
        ]
    )
    assert (reached.diff(dim=0) <= 1e-6).all()
    assert (reached[-1] < reached[0]).any()
    target = (labels + 1) % 5
    short, long = (
        PGD(epsilon=0.1, step_size=0.15, steps=steps)(victim, images, labels, seeds=range(9), target=target).x_adv
        for steps in (7, 8)
    )
    assert (margin(victim(long), target) >= margin(victim(short), target) - 1e-6).all()


def test_pgd_starts_again_where_an_image_withstood(victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    once, thrice = (
        PGD(epsilon=0.02, steps=3, restarts=restarts)(victim, images, labels, seeds=range(9)) for restarts in (1, 3)
    )
    ahead, less = (margin(victim(attacked.x_adv), labels) for attacked in (once, thrice))
    fallen = ahead < 0
    assert 0 < fallen.sum() < 9
    assert (less <= ahead).all()
    assert (less < ahead).any()
    assert torch.equal(thrice.x_adv[fallen], once.x_adv[fallen])
    assert thrice.steps[fallen].eq(3).all()
    assert thrice.steps[~fallen].gt(3).all()
    assert (thrice.queries == 7 * thrice.steps // 3).all()
    rows = torch.tensor([7, 2])
    alone = PGD(epsilon=0.02, steps=3, restarts=3)(victim, images[rows], labels[rows], seeds=rows.tolist())
    torch.testing.assert_close(alone.x_adv, thrice.x_adv[rows], rtol=0, atol=1e-5)


class Breaking(nn.Module):
    """Logits, and so gradients, that are no numbers once an image is another."""

    def __init__(self, victim: nn.Module, clean: Tensor) -> None:
        super().__init__()
        self.victim, self.clean = victim, clean

    def forward(self, x: Tensor) -> Tensor:
        known = (x[:, None] - self.clean).abs().flatten(2).amax(dim=2).amin(dim=1) < 1e-3
        return self.victim(x) * torch.where(known, 1, torch.nan)[:, None]


@pytest.mark.parametrize("name", NAMES)
def test_logits_that_are_no_numbers_fool_nobody(name: str, victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    attack = build(name)
    x_adv = attack(Breaking(victim, images), images, labels, seeds=range(9)).x_adv
    assert x_adv.isfinite().all()
    if attack.norm is None:
        assert torch.equal(x_adv, images)


def test_an_image_that_an_attack_made_none_comes_back_unmodified(
    victim: nn.Module, images: Tensor, labels: Tensor
) -> None:
    def spoils(victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Sequence[int], target: Tensor | None) -> Attacked:
        x_adv = 1 - x
        x_adv[2, 0, 3, 4], x_adv[5] = torch.nan, torch.inf
        return counted(x_adv, steps=1, queries=2)

    x_adv = run_attack(spoils, victim, images, labels, seeds=range(9)).x_adv
    lost = torch.tensor([2, 5])
    assert torch.equal(x_adv[lost], images[lost])
    assert torch.equal(x_adv[0], 1 - images[0])


def test_fgsm_equals_torchattacks(victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    ours = FGSM(epsilon=0.1)(victim, images, labels, seeds=range(9)).x_adv
    torch.testing.assert_close(ours, torchattacks.FGSM(victim, eps=0.1)(images, labels), rtol=0, atol=1e-6)


def test_pgd_equals_torchattacks(victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    ours = PGD(epsilon=0.1, steps=7, step_size=0.014, random_start=False)(victim, images, labels, seeds=range(9)).x_adv
    theirs = torchattacks.PGD(victim, eps=0.1, alpha=0.014, steps=7, random_start=False)(images, labels)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_pgd_l2_equals_torchattacks(victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    attack = PGDL2(epsilon=0.5, steps=7, step_size=0.1, random_start=False)
    ours = attack(victim, images, labels, seeds=range(9)).x_adv
    theirs = torchattacks.PGDL2(victim, eps=0.5, alpha=0.1, steps=7, random_start=False)(images, labels)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_pgd_l2_starts_anywhere_in_its_ball(victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    inside = images[:1].clamp(0.4, 0.6).expand(200, -1, -1, -1)
    away = PGDL2(epsilon=0.5)._start(inside, range(200)) - inside
    distances = away.flatten(1).norm(dim=1)
    assert distances.max() <= 0.5
    assert distances.min() < 0.05
    assert distances.mean().item() == pytest.approx(0.25, abs=0.05)


def test_r_fgsm_takes_half_of_epsilon_at_random(victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    inside = images.clamp(0.4, 0.6)
    change = RFGSM(epsilon=0.2)(victim, inside, labels, seeds=range(9)).x_adv - inside
    lengths = change.abs().flatten()
    # Both steps are of 0.1: they add up, or cancel.
    assert torch.minimum((lengths - 0.2).abs(), lengths).max() < 1e-6
    assert 0.2 < (lengths > 0.1).float().mean() < 0.8


def test_predicted_labels_leak_no_label(victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    wrong = (labels + 1) % 5
    attack = FGSM(epsilon=0.1, labels="predicted")
    assert torch.equal(
        attack(victim, images, wrong, seeds=range(9)).x_adv, attack(victim, images, labels, seeds=range(9)).x_adv
    )


@pytest.mark.parametrize(
    ("name", "params", "field"),
    [
        ("fgsm", {"epsilon": -0.1}, "epsilon"),
        ("fgsm", {"epsilon": 8}, "epsilon"),
        ("fgsm", {"labels": "guessed"}, "labels"),
        ("r_fgsm", {"epsilon": 0.1, "phi": 0.2}, "phi"),
        ("pgd", {"steps": 0}, "steps"),
        ("pgd", {"step_size": 0}, "step_size"),
        ("pgd", {"restarts": 0}, "restarts"),
        ("pgd", {"restarts": 2, "random_start": False}, "random_start"),
        ("pgd", {"stepsize": 0.1}, "stepsize"),
        ("apgd", {"loss": "mse"}, "loss"),
        ("apgd", {"classes": 0}, "classes"),
        ("apgd", {"rho": 1}, "rho"),
        ("fab", {"steps": 0}, "steps"),
        ("fab", {"beta": 1.1}, "beta"),
        ("fab", {"eta": 0.9}, "eta"),
        ("square", {"queries": 0}, "queries"),
        ("square", {"p_init": 0}, "p_init"),
        ("auto_attack", {"version": "plus"}, "version"),
        ("auto_attack", {"epsilon": 8}, "epsilon"),
    ],
)
def test_refuses_bad_parameters(name: str, params: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        build(name, **params)


@pytest.mark.parametrize("name", NAMES)
def test_its_configuration_is_frozen(name: str) -> None:
    attack = build(name)
    assert dataclasses.is_dataclass(attack)
    assert attack == build(name)
    assert hash(attack) == hash(build(name))
