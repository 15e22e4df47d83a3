"""Rotations and translations: where the pixels go, and which transform is taken."""

import pytest
import torch
from torch import Tensor, nn

from raypurify.attacks.rotation_translation import RotationTranslation, rotate_and_translate


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(6, 3, 11, 9, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def victim() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 11 * 9, 4))
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def labels(victim: nn.Module, images: Tensor) -> Tensor:
    return victim(images).argmax(dim=1)


class Sides(nn.Module):
    """Class 0 where the left half is the brighter, else class 1."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[3] // 2
        return torch.stack([x[..., :half].sum(dim=(1, 2, 3)), x[..., half:].sum(dim=(1, 2, 3))], dim=1)


@pytest.mark.parametrize("turns", [-1, 1, 2])
def test_a_quarter_turn_is_rot90(turns: int) -> None:
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    turned = rotate_and_translate(x, torch.tensor([[90.0 * turns, 0, 0]]).expand(2, -1))
    torch.testing.assert_close(turned, torch.rot90(x, turns, (2, 3)), rtol=0, atol=1e-5)


def test_half_a_turn_of_an_oblong(images: Tensor) -> None:
    turned = rotate_and_translate(images, torch.tensor([[180.0, 0, 0]]).expand(6, -1))
    torch.testing.assert_close(turned, images.flip(2, 3), rtol=0, atol=1e-5)


def test_a_quarter_turn_of_an_oblong_keeps_its_lengths() -> None:
    x = torch.zeros(1, 1, 5, 11)
    x[0, 0, 2, 3:8] = 1  # a bar of five pixels through the centre
    turned = rotate_and_translate(x, torch.tensor([[90.0, 0, 0]]))
    expected = torch.zeros(1, 1, 5, 11)
    expected[0, 0, :, 5] = 1
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-5)


def test_a_shift_goes_right_and_down_and_leaves_black(images: Tensor) -> None:
    moved = rotate_and_translate(images, torch.tensor([[0.0, 2, 3]]).expand(6, -1))
    expected = torch.zeros_like(images)
    expected[:, :, 3:, 2:] = images[:, :, :-3, :-2]
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)


def test_turned_first_then_shifted() -> None:
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    moved = rotate_and_translate(x, torch.tensor([[90.0, 3, 0]]))
    expected = torch.zeros_like(x)
    expected[..., 3:] = torch.rot90(x, 1, (2, 3))[..., :-3]
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)


def test_each_image_has_its_own_transform(images: Tensor) -> None:
    transforms = torch.tensor([[0.0, 0, 0], [30, 1, -2], [180, 0, 0], [-10, 0, 3], [5, -3, 0], [0, 0, 1]])
    together = rotate_and_translate(images, transforms)
    for row in range(6):
        alone = rotate_and_translate(images[row : row + 1], transforms[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-6)


@pytest.fixture
def stripes() -> Tensor:
    """A bright column each, left of the middle of 12: by one pixel, by two, by three, by six."""
    x = torch.zeros(4, 1, 12, 12)
    for row, column in enumerate((5, 4, 3, 0)):
        x[row, :, :, column] = 1
    return x


def test_finds_the_shift_that_crosses_the_middle(stripes: Tensor) -> None:
    attack = RotationTranslation(max_rotation=0, num_rotations=1, max_translation=2, num_translations=3)
    attacked = attack(Sides(), stripes, torch.zeros(4, dtype=torch.int64), seeds=range(4))
    assert Sides()(attacked.x_adv).argmax(dim=1).tolist() == [1, 1, 0, 0]
    assert attacked.x_adv[0, 0, :, 7].min() > 0.99
    assert attacked.x_adv[1, 0, :, 6].min() > 0.99
    assert torch.equal(attacked.x_adv[2:], stripes[2:])
    assert attacked.steps.tolist() == [0] * 4
    assert attacked.queries.tolist() == [1 + 9 + 1] * 4


def test_takes_the_worst_of_those_that_fool(stripes: Tensor) -> None:
    x = stripes[:1] + stripes[3:]
    x[0, 0, :, 0] = 0.5
    # By three to the right the bright column crosses; by nine to the left there is nothing left to see.
    attack = RotationTranslation(max_rotation=0, num_rotations=1, max_translation=3, num_translations=7)
    x_adv = attack(Sides(), x, torch.zeros(1, dtype=torch.int64), seeds=[0]).x_adv
    logits = Sides()(x_adv)[0]
    assert (logits[1] - logits[0]).item() == pytest.approx(12 - 6, abs=1e-3)


def test_targeted(stripes: Tensor) -> None:
    attack = RotationTranslation(max_rotation=0, num_rotations=1)
    ones = torch.ones(4, dtype=torch.int64)
    attacked = attack(Sides(), stripes, ones - 1, seeds=range(4), target=ones)
    assert Sides()(attacked.x_adv).argmax(dim=1).tolist() == [1, 1, 1, 0]
    assert torch.equal(attacked.x_adv[3], stripes[3])


def test_an_image_that_is_wrong_already_costs_one_look(stripes: Tensor) -> None:
    attacked = RotationTranslation()(Sides(), stripes, torch.ones(4, dtype=torch.int64), seeds=range(4))
    assert torch.equal(attacked.x_adv, stripes)
    assert attacked.queries.tolist() == [1] * 4


@pytest.mark.parametrize("grid_search", [True, False])
@pytest.mark.parametrize("size", [1, 3])
def test_an_image_does_not_depend_on_its_batch(
    size: int, grid_search: bool, victim: nn.Module, images: Tensor, labels: Tensor
) -> None:
    attack = RotationTranslation(grid_search=grid_search)
    labels = torch.cat([(labels[:1] + 1) % 4, labels[1:]])  # the first is wrong already, and leaves
    together = attack(victim, images, labels, seeds=range(10, 16)).x_adv
    order = torch.tensor([5, 2, 0, 3, 1, 4])
    parts = [attack(victim, images[rows], labels[rows], seeds=(rows + 10).tolist()).x_adv for rows in order.split(size)]
    torch.testing.assert_close(torch.cat(parts), together[order], rtol=0, atol=1e-5)


def test_random_transforms_are_the_seeds_alone(victim: nn.Module, images: Tensor, labels: Tensor) -> None:
    attack = RotationTranslation(grid_search=False, random_steps=20)
    state = torch.get_rng_state()
    first = attack(victim, images, labels, seeds=range(6)).x_adv
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(first, attack(victim, images, labels, seeds=range(6)).x_adv)
    assert not torch.equal(first, attack(victim, images, labels, seeds=range(1, 7)).x_adv)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"max_rotation": 200.0}, "max_rotation"),
        ({"max_translation": -1.0}, "max_translation"),
        ({"num_rotations": 0}, "num_rotations"),
        ({"num_translations": 0}, "num_translations"),
        ({"random_steps": 0}, "random_steps"),
    ],
)
def test_refuses_bad_parameters(params: dict[str, float], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        RotationTranslation(**params)
