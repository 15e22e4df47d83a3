"""DeepFool and Carlini-Wagner: the nearest image that fools the victim, each image in its own time."""

import pytest
import torch
from torch import Tensor, nn

from raypurify.attacks._active import margin, rivals
from raypurify.attacks.carlini_wagner import CarliniWagner
from raypurify.attacks.deepfool import DeepFool

ATTACKS = [DeepFool(), CarliniWagner(steps=100)]


class Linear(nn.Module):
    """Logits of a linear classifier: distances to its boundaries are known."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.randn(4, 36, generator=generator) / 6
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.weight.T + self.offset


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Far from the edges of the box, so that projections do nothing."""
    return 0.3 + 0.4 * torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(4))


def distance(victim: Linear, x: Tensor, y: Tensor) -> Tensor:
    """To the nearest boundary, exactly."""
    logits = victim(x)
    gaps = logits.gather(1, y[:, None]) - logits
    lengths = (victim.weight[y][:, None] - victim.weight[None]).norm(dim=2)
    return (gaps / lengths.clamp_min(1e-9)).scatter(1, y[:, None], torch.inf).amin(dim=1)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
@pytest.mark.parametrize("offset", [0.0, -100.0], ids=["", "negative logits"])
def test_finds_the_nearest_boundary_of_a_linear_classifier(attack: DeepFool, offset: float, images: Tensor) -> None:
    victim = Linear(offset)
    y = victim(images).argmax(dim=1)
    attacked = attack(victim, images, y, seeds=range(12))
    l2 = (attacked.x_adv - images).flatten(1).norm(dim=1)
    assert (victim(attacked.x_adv).argmax(dim=1) != y).all()
    assert (l2 >= distance(victim, images, y) - 1e-5).all()
    assert (l2 <= 1.05 * distance(victim, images, y) + 5e-3).all()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_an_image_that_cannot_be_fooled_comes_back_as_it_was(attack: DeepFool, images: Tensor) -> None:
    class Stubborn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([5.0, 0.0]) + 1e-4 * x.flatten(1)[:, :2].tanh()

    y = torch.zeros(12, dtype=torch.int64)
    attacked = attack(Stubborn(), images, y, seeds=range(12))
    assert torch.equal(attacked.x_adv, images)


def test_deepfool_leaves_wrong_images_alone_and_stops_with_each(images: Tensor) -> None:
    victim = Linear()
    y = victim(images).argmax(dim=1)
    y[:3] = (y[:3] + 1) % 4
    attacked = DeepFool()(victim, images, y, seeds=range(12))
    assert torch.equal(attacked.x_adv[:3], images[:3])
    assert attacked.steps[:3].tolist() == [0, 0, 0]
    assert attacked.queries[:3].tolist() == [1, 1, 1]
    assert (attacked.steps[3:] == 1).all(), "one linearisation is enough for a linear classifier"
    assert (attacked.queries[3:] == 1 + 1 + 3 + 1).all()


def test_deepfool_crosses_boundaries_at_the_edge_of_the_box() -> None:
    victim = Linear()
    x = (torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(5)) > 0.5).float()
    y = victim(x).argmax(dim=1)
    x_adv = DeepFool()(victim, x, y, seeds=range(40)).x_adv
    assert (victim(x_adv).argmax(dim=1) != y).all()


def test_deepfool_overshoots_as_far_as_it_is_told(images: Tensor) -> None:
    victim = Linear()
    y = victim(images).argmax(dim=1)
    near, far = (
        (DeepFool(overshoot=overshoot)(victim, images, y, seeds=range(12)).x_adv - images).flatten(1).norm(dim=1)
        for overshoot in (0.02, 0.5)
    )
    torch.testing.assert_close(far / near, torch.full((12,), 1.5 / 1.02), rtol=1e-3, atol=0)


def test_carlini_wagner_keeps_its_confidence(images: Tensor) -> None:
    victim = Linear()
    y = victim(images).argmax(dim=1)
    x_adv = CarliniWagner(confidence=0.3, steps=100)(victim, images, y, seeds=range(12)).x_adv
    assert (margin(victim(x_adv), y) <= -0.3).all()
    target = (y + 1) % 4
    x_adv = CarliniWagner(confidence=0.2, steps=100)(victim, images, y, seeds=range(12), target=target).x_adv
    assert (margin(victim(x_adv), target) >= 0.2).all()


def test_carlini_wagner_moves_pixels_that_lie_on_the_edge() -> None:
    victim = Linear()
    x = torch.zeros(8, 1, 6, 6)
    y = victim(x).argmax(dim=1)
    x_adv = CarliniWagner(steps=100)(victim, x, y, seeds=range(8)).x_adv
    assert (victim(x_adv).argmax(dim=1) != y).all()


def test_carlini_wagner_lets_images_leave_when_they_stop_improving(images: Tensor) -> None:
    victim = Linear()
    y = victim(images).argmax(dim=1)
    patient = CarliniWagner(steps=300, tolerance=0.0)(victim, images, y, seeds=range(12))
    hasty = CarliniWagner(steps=300, tolerance=0.05)(victim, images, y, seeds=range(12))
    assert (hasty.steps <= patient.steps).all()
    assert hasty.steps.sum() < patient.steps.sum()
    assert len(set(hasty.steps.tolist())) > 1, "each image stops by itself"
    assert (hasty.queries == 2 * hasty.steps).all()


def test_margin_and_rivals_are_right_below_zero() -> None:
    logits = torch.tensor([[-5.0, -3.0, -9.0], [2.0, -1.0, 0.0]])
    assert margin(logits, torch.tensor([1, 2])).tolist() == [2.0, -2.0]
    assert rivals(logits, torch.tensor([1, 2]), 2).tolist() == [[0, 2], [0, 1]]
    assert rivals(logits, torch.tensor([1, 2]), 9).shape == (2, 2)


@pytest.mark.parametrize(
    ("build", "params"),
    [
        (DeepFool, {"steps": 0}),
        (DeepFool, {"overshoot": -0.1}),
        (DeepFool, {"candidates": 1}),
        (CarliniWagner, {"search_steps": 0}),
        (CarliniWagner, {"initial_c": 0}),
        (CarliniWagner, {"edge": 0}),
        (CarliniWagner, {"decay": 0}),
        (CarliniWagner, {"confidence": -1}),
    ],
)
def test_bad_parameters_are_named(build: type, params: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(params))):
        build(**params)
