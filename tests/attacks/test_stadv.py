"""The spatially transformed attack: its flow, its loss, and what becomes of each image."""

import math

import pytest
import torch
from torch import Tensor, nn

from raypurify.attacks._active import margin
from raypurify.attacks.stadv import StAdv, flow_loss, warp


@pytest.fixture(scope="module")
def victim() -> nn.Module:
    """Takes RGB that is higher than wide; its first layer is wide enough to see where things are."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 13 * 9, 4))
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(8, 3, 13, 9, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def labels(victim: nn.Module, images: Tensor) -> Tensor:
    return victim(images).argmax(dim=1)


@pytest.mark.parametrize("shape", [(2, 3, 7, 5), (1, 1, 4, 6), (2, 1, 1, 5), (2, 3, 6, 1)])
def test_a_zero_flow_is_the_identity(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    for padding in ("border", "zeros"):
        warped = warp(x, torch.zeros(shape[0], 2, *shape[2:]), padding=padding)
        torch.testing.assert_close(warped, x, rtol=0, atol=1e-5)


def test_a_flow_of_whole_pixels_fetches_those_pixels() -> None:
    x = torch.rand(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    flow = torch.zeros(2, 2, 7, 5)
    flow[0, 0], flow[1, 1] = 2, -3  # two to the right; three up
    warped = warp(x, flow)
    torch.testing.assert_close(warped[0, :, :, :3], x[0, :, :, 2:], rtol=0, atol=1e-5)
    torch.testing.assert_close(warped[0, :, :, 3:], x[0, :, :, 4:].expand(-1, -1, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(warped[1, :, 3:], x[1, :, :4], rtol=0, atol=1e-5)
    torch.testing.assert_close(warped[1, :, :3], x[1, :, :1].expand(-1, 3, -1), rtol=0, atol=1e-5)
    black = warp(x, flow, padding="zeros")
    assert black[0, :, :, 3:].abs().max() < 1e-5
    assert black[1, :, :3].abs().max() < 1e-5


def test_half_a_pixel_is_the_mean_of_two() -> None:
    x = torch.tensor([0.0, 1.0, 0.5]).view(1, 1, 1, 3)
    flow = torch.zeros(1, 2, 1, 3)
    flow[:, 0] = 0.5
    torch.testing.assert_close(warp(x, flow).flatten(), torch.tensor([0.5, 0.75, 0.5]))


def test_the_flow_loss_by_hand() -> None:
    flow = torch.zeros(2, 2, 2, 3)
    flow[0, :, 0, 0] = torch.tensor([3.0, 4.0])  # a corner, 5 from both its neighbours
    flow[1, 0, 0, 1] = 2.0  # on an edge, 2 from its three neighbours
    pairs = 7  # in 2 x 3 pixels, each counted from both sides
    even = 1e-4
    expected = torch.tensor([2 * (2 * 5 + (pairs - 2) * even), 2 * (3 * 2 + (pairs - 3) * even)])
    torch.testing.assert_close(flow_loss(flow), expected)


def test_the_flow_loss_of_a_shift_is_that_of_no_flow() -> None:
    shift = torch.tensor([1.5, -2.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    torch.testing.assert_close(flow_loss(shift), flow_loss(torch.zeros(1, 2, 4, 4)))
    assert math.isclose(flow_loss(shift).item(), 48e-4, rel_tol=1e-4)


def test_the_image_is_the_warped_one(victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    flow, attacked = StAdv().flow(victim, images, labels, seeds=range(8))
    assert flow.shape == (8, 2, 13, 9)
    torch.testing.assert_close(attacked.x_adv, warp(images, flow).clamp(0, 1), rtol=0, atol=1e-6)
    assert (victim(attacked.x_adv).argmax(dim=1) != labels).all()
    assert torch.equal(attacked.x_adv, StAdv()(victim, images, labels, seeds=range(8)).x_adv)


def test_smoother_than_the_first_flow_that_fools(victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    smooth, _ = StAdv().flow(victim, images, labels, seeds=range(8))
    rough, _ = StAdv(tau=0).flow(victim, images, labels, seeds=range(8))
    assert (flow_loss(smooth) < flow_loss(rough)).all()
    assert flow_loss(smooth).mean() < 0.6 * flow_loss(rough).mean()


def test_kappa_is_the_margin_won(victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    narrow = margin(victim(StAdv()(victim, images, labels, seeds=range(8)).x_adv), labels)
    attacked = StAdv(kappa=0.1).flow(victim, images, labels, seeds=range(8))[1]
    assert (narrow > -0.1).any()
    assert (margin(victim(attacked.x_adv), labels) <= -0.1 + 1e-5).all()


def test_targeted(victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    target = (labels + 1) % 4
    x_adv = StAdv()(victim, images, labels, seeds=range(8), target=target).x_adv
    assert torch.equal(victim(x_adv).argmax(dim=1), target)


class Stubborn(nn.Module):
    """Leans on the image, and says class 0 by far whatever comes."""

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(dim=(1, 2, 3))
        return torch.stack([means + 100, means], dim=1)


def test_a_failed_image_comes_back_as_it_was(images: Tensor) -> None:
    flow, attacked = StAdv(steps=25).flow(Stubborn(), images, torch.zeros(8, dtype=torch.int64), seeds=range(8))
    assert torch.equal(attacked.x_adv, images)
    assert not flow.any()
    assert attacked.steps.tolist() == [25] * 8
    assert attacked.queries.tolist() == [51] * 8


def test_an_image_that_is_wrong_already_costs_one_look(victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    mixed = torch.where(torch.arange(8) % 2 == 0, labels, (labels + 1) % 4)
    attacked = StAdv()(victim, images, mixed, seeds=range(8))
    assert torch.equal(attacked.x_adv[1::2], images[1::2])
    assert attacked.steps[1::2].tolist() == [0] * 4
    assert attacked.queries[1::2].tolist() == [1] * 4
    assert (attacked.x_adv[::2] != images[::2]).flatten(1).any(dim=1).all()


def test_images_leave_when_they_are_done(victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    seen = []
    victim_that_counts = nn.Sequential(victim)
    victim_that_counts.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    attacked = StAdv()(victim_that_counts, images, labels, seeds=range(8))
    assert attacked.steps.unique().numel() > 1
    assert attacked.steps.float().mean() < 150
    assert sum(seen) == 8 + attacked.steps.sum()
    assert torch.equal(attacked.queries, 1 + 2 * attacked.steps)


@pytest.mark.parametrize("size", [1, 3])
def test_an_image_and_its_cost_do_not_depend_on_its_batch(
    size: int, victim: nn.Module, images: Tensor, labels: Tensor
) -> None:
    together = StAdv()(victim, images, labels, seeds=range(8))
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    parts = [StAdv()(victim, images[rows], labels[rows], seeds=rows.tolist()) for rows in order.split(size)]
    torch.testing.assert_close(torch.cat([part.x_adv for part in parts]), together.x_adv[order], rtol=0, atol=1e-5)
    assert torch.equal(torch.cat([part.steps for part in parts]), together.steps[order])


def test_a_heavy_tau_gives_way_where_the_victim_stands(victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    x_adv = StAdv(tau=20.0)(victim, images, labels, seeds=range(8)).x_adv
    assert (victim(x_adv).argmax(dim=1) != labels).all()


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"tau": -0.1}, "tau"),
        ({"kappa": -1.0}, "kappa"),
        ({"steps": 0}, "steps"),
        ({"patience": 0}, "patience"),
        ({"rate": 0.0}, "rate"),
        ({"decay": 1.5}, "decay"),
    ],
)
def test_refuses_bad_parameters(params: dict[str, float], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        StAdv(**params)
