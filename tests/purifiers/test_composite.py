from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from raypurify import plugins
from raypurify.attacks import Composite, purify
from raypurify.attacks.pgd import PGD
from raypurify.purifiers.gaussian_noise import GaussianNoise
from raypurify.purifiers.rounding import Rounding


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def gradient(victim: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(victim(x)[:, 0].sum(), x)[0]


class Step(nn.Module):
    differentiable = False

    def forward(self, x: Tensor) -> Tensor:
        return (x > 0.5).float()


class Doubled(nn.Module):
    def unclipped(self, x: Tensor) -> Tensor:
        return 2 * x

    def forward(self, x: Tensor) -> Tensor:
        return self.unclipped(x).clamp(0, 1)


def test_a_surrogate_lends_its_gradient_and_not_its_output(classifier: nn.Module, x: Tensor) -> None:
    weights = classifier[1].weight[0].view(1, 1, 8, 8).expand_as(x)
    around = Composite(classifier, Step(), surrogate=nn.Identity())
    torch.testing.assert_close(around(x), classifier(Step()(x)))
    torch.testing.assert_close(gradient(around, x), weights)
    half = nn.Sequential(nn.Hardtanh(0, 1), nn.AvgPool2d(1), nn.Threshold(-1.0, 0.0))
    torch.testing.assert_close(Composite(classifier, Step(), surrogate=half)(x), classifier(Step()(x)))
    scaled = plugins.build("raypurify.purifiers", plugins.Spec(name="mean_filter"))
    assert not torch.allclose(gradient(Composite(classifier, Step(), surrogate=scaled), x), weights)


@pytest.mark.parametrize("purifier", [Step(), Rounding(bits=4)], ids=["step", "rounding"])
def test_without_a_surrogate_a_cut_graph_is_a_gradient_of_zero(
    purifier: nn.Module, classifier: nn.Module, x: Tensor
) -> None:
    assert gradient(Composite(classifier, purifier), x).abs().max() == 0


def test_bpda_beats_the_plain_gradient_through_rounding(classifier: nn.Module, x: Tensor) -> None:
    labels, purifier = classifier(x).argmax(dim=1), Rounding(bits=4)
    attack = PGD(epsilon=0.1, steps=10)

    def accuracy(victim: nn.Module) -> float:
        x_adv = attack(victim, x, labels, seeds=range(16)).x_adv
        return (classifier(purifier(x_adv)).argmax(dim=1) == labels).float().mean().item()

    around = accuracy(Composite(classifier, purifier, surrogate=nn.Identity()))
    assert around < accuracy(Composite(classifier, purifier)) - 0.3


def test_a_straight_through_clip_lets_the_gradient_pass(classifier: nn.Module, x: Tensor) -> None:
    plain, through = (Composite(classifier, Doubled(), straight_through=passes) for passes in (False, True))
    torch.testing.assert_close(plain(x), through(x))
    assert (gradient(plain, x)[x > 0.5] == 0).all()
    assert (gradient(through, x) != 0).all()


def test_a_random_purifier_is_averaged_over_fresh_draws_that_repeat(classifier: nn.Module, x: Tensor) -> None:
    def victim(draws: int) -> Composite:
        return Composite(classifier, GaussianNoise(sigma=0.2), draws=draws, seed=3)

    first, again = victim(4), victim(4)
    one, two = first(x), first(x)
    assert not torch.equal(one, two), "a second call draws afresh"
    assert torch.equal(one, again(x)), "a retried batch repeats itself"
    torch.testing.assert_close(victim(4)(x[5:7]), one[5:7])
    calm, wild = victim(200), victim(1)
    exact = classifier(x)
    assert (calm(x) - exact).abs().mean() < (wild(x) - exact).abs().mean()


QUICK = {"carlini_wagner": {"search_steps": 3, "steps": 40}, "pgd": {"steps": 5}, "stadv": {"steps": 20}}


@pytest.mark.parametrize("name", [name for name in plugins.known("raypurify.attacks") if name != "none"])
def test_before_a_random_purifier_an_image_does_not_depend_on_its_batch(
    name: str, classifier: nn.Module, x: Tensor
) -> None:
    attack = plugins.build("raypurify.attacks", plugins.Spec(name=name, params=QUICK.get(name, {})))
    y = classifier(x).argmax(dim=1)
    y[:8] = (y[:8] + 1) % 4

    def attacked(rows: list[int]) -> Tensor:
        victim = Composite(classifier, GaussianNoise(sigma=0.2), draws=1, seed=3)
        images: Tensor = attack(victim, x[rows], y[rows], seeds=rows).x_adv
        return images

    whole = attacked(list(range(16)))
    assert not torch.equal(whole, x)
    for rows in ([9, 13], [15]):
        torch.testing.assert_close(attacked(rows), whole[rows], atol=1e-4, rtol=0)


def test_purify_gives_seeds_to_those_that_draw(x: Tensor) -> None:
    seeds: Sequence[int] = range(16)
    assert torch.equal(purify(nn.Identity(), x, seeds), x)
    noisy = purify(GaussianNoise(sigma=0.1), x, seeds)
    assert torch.equal(noisy[3:4], purify(GaussianNoise(sigma=0.1), x[3:4], [3]))
    assert 0.05 < (noisy - x).abs().mean() < 0.1
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    with pytest.raises(ValueError, match="sigma"):
        GaussianNoise(sigma=-1)
