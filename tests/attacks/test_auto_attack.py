"""AutoAttack and its four attacks, beside torchattacks' and ART's."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchattacks
from torch import Tensor, nn
from torch.nn import functional as F

from raypurify.attacks import Attack, Attacked, Composite
from raypurify.attacks._active import margin
from raypurify.attacks._survivors import Survivors
from raypurify.attacks.apgd import APGD, log_odds, logits_ratio
from raypurify.attacks.auto_attack import AutoAttack
from raypurify.attacks.fab import FAB, onto_hyperplane
from raypurify.attacks.square import HALVED_AFTER, Square
from raypurify.data import open_source, read_rows
from raypurify.purifiers.gaussian_noise import build as gaussian_noise
from raypurify.training.batches import batch_of

EPSILON = 0.12
"""Where some images of the digits' classifier withstand each attack."""
SLACK = 3
"""Images of the 64 by which two random starts may differ."""

Images = tuple[Tensor, Tensor]


def digits(split: str, n: int) -> Images:
    rows = read_rows(open_source("digits", split=split).shards[0], 0, n)
    batch = batch_of(np.asarray(rows.images), rows.labels, (), "cpu")
    return batch.x.contiguous(), batch.y


@pytest.fixture(scope="module")
def victim() -> nn.Module:
    """A small network, trained on the digits."""
    x, y = digits("train", 1500)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(6):
        for rows in torch.randperm(len(x)).split(100):
            optimizer.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> Images:
    return digits("test", 64)


def withstands(victim: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
    return victim(x_adv).argmax(dim=1) == y


class Recorder(nn.Module):
    """The victim, which keeps what it was asked."""

    def __init__(self, victim: nn.Module) -> None:
        super().__init__()
        self.victim, self.asked = victim, []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone())
        return self.victim(x)


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_goes_where_torchattacks_goes_from_the_same_start(loss: str, victim: nn.Module, images: Images) -> None:
    # In float64, for the library's cross-entropy is rounding in float32 where the network is sure of itself.
    x, y = images[0].double(), images[1]
    network = copy.deepcopy(victim).double()
    epsilon, steps = 0.02, 50
    ours, theirs = Recorder(network), Recorder(network)
    library = torchattacks.APGD(theirs, eps=epsilon, steps=steps, loss=loss)
    torch.manual_seed(5)
    _, right, *_ = library.attack_single_run(x, y)
    torch.manual_seed(5)
    noise = 2 * torch.rand(x.shape) - 1
    start = (x + epsilon * noise / noise.flatten(1).abs().amax(dim=1)[:, None, None, None]).clamp(0, 1)
    held = torch.nonzero(withstands(network, x, y) & right).flatten()
    assert len(held) > 40
    found = Survivors(network, x[held], y[held], None)
    APGD(epsilon=epsilon, steps=steps, loss=loss).ascend(ours, found, torch.arange(len(held)), None, start[held])
    assert len(ours.asked) == len(theirs.asked) == steps + 1
    together = torch.ones(len(held), dtype=torch.bool)
    for step, (mine, other) in enumerate(zip(ours.asked[:23], theirs.asked, strict=False)):  # checks after 11 and 21
        together &= (mine - other[held]).flatten(1).abs().amax(dim=1) < 1e-5
        print(f"{loss}, step {step}: {int(together.sum())} of {len(held)} images are in the same place")
        # The first check counts a rise above the start's loss, as in the paper; the library's counts one above 0.
        assert together.float().mean() > 0.9, f"step {step}"


Rival = Callable[[nn.Module], torchattacks.attack.Attack]
RIVALS: list[tuple[str, Attack, Rival]] = [
    (
        "apgd-ce",
        APGD(epsilon=EPSILON, steps=30),
        lambda victim: torchattacks.APGD(victim, eps=EPSILON, steps=30),
    ),
    (
        "apgd-dlr",
        APGD(epsilon=EPSILON, steps=30, loss="dlr"),
        lambda victim: torchattacks.APGD(victim, eps=EPSILON, steps=30, loss="dlr"),
    ),
    (
        "apgd-t",
        APGD(epsilon=EPSILON, steps=30, targeted=True),
        lambda victim: torchattacks.APGDT(victim, eps=EPSILON, steps=30),
    ),
    (
        "fab-t",
        FAB(epsilon=EPSILON, steps=30),
        lambda victim: torchattacks.FAB(victim, eps=EPSILON, steps=30, multi_targeted=True),
    ),
    (
        "square",
        Square(epsilon=EPSILON, queries=500),
        lambda victim: torchattacks.Square(victim, eps=EPSILON, n_queries=500),
    ),
]


@pytest.mark.parametrize(("name", "attack", "rival"), RIVALS, ids=[name for name, *_ in RIVALS])
def test_is_as_strong_as_torchattacks(
    name: str, attack: Attack, rival: Rival, victim: nn.Module, images: Images
) -> None:
    x, y = images
    with torch.random.fork_rng():
        theirs = withstands(victim, rival(victim)(x, y), y)
    ours = withstands(victim, attack(victim, x, y, seeds=range(64)).x_adv, y)
    print(f"{name}: ours leaves {int(ours.sum())}, torchattacks {int(theirs.sum())}")
    assert 5 < ours.sum() < 60
    assert ours.sum() <= theirs.sum() + SLACK
    if name == "fab-t":
        assert (ours & ~theirs).sum() == 0, "nothing is random"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "square"])
def test_is_as_strong_as_art(name: str, victim: nn.Module, images: Images) -> None:
    evasion = pytest.importorskip("art.attacks.evasion")
    classification = pytest.importorskip("art.estimators.classification")
    x, y = images
    attacks = {name: attack for name, attack, _ in RIVALS}
    estimator = classification.PyTorchClassifier(
        victim,
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, 28, 28),
        nb_classes=10,
        clip_values=(0, 1),
        device_type="cpu",
    )
    common = {"eps": EPSILON, "norm": np.inf, "batch_size": 64, "verbose": False}
    if name == "square":
        theirs = evasion.SquareAttack(estimator, max_iter=500, p_init=0.8, nb_restarts=1, **common)
    else:
        loss = {"apgd-ce": "cross_entropy", "apgd-dlr": "difference_logits_ratio"}[name]
        theirs = evasion.AutoProjectedGradientDescent(
            estimator, eps_step=2 * EPSILON, max_iter=30, nb_random_init=1, loss_type=loss, **common
        )
    made = torch.from_numpy(theirs.generate(x.numpy(), y.numpy()))
    other = withstands(victim, made, y)
    ours = withstands(victim, attacks[name](victim, x, y, seeds=range(64)).x_adv, y)
    print(f"{name}: ours leaves {int(ours.sum())}, ART {int(other.sum())}")
    assert ours.sum() <= other.sum() + SLACK


def test_auto_attack_is_as_strong_as_torchattacks_members_together(victim: nn.Module, images: Images) -> None:
    x, y = images
    with torch.random.fork_rng():
        left = torch.stack([withstands(victim, rival(victim)(x, y), y) for _, _, rival in RIVALS]).all(dim=0)
    ours = withstands(
        victim, AutoAttack(epsilon=EPSILON, steps=30, queries=500)(victim, x, y, seeds=range(64)).x_adv, y
    )
    assert 5 < ours.sum() <= left.sum() + SLACK
    assert (ours & ~left).sum() <= SLACK


@pytest.mark.parametrize("attack", [APGD(epsilon=EPSILON, steps=20), APGD(epsilon=EPSILON, steps=20, targeted=True)])
@pytest.mark.parametrize("scale", [10, 1000])
def test_larger_logits_leave_no_more_images(attack: APGD, scale: float, victim: nn.Module, images: Images) -> None:
    x, y = images

    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return scale * victim(x)

    plain = withstands(victim, attack(victim, x, y, seeds=range(64)).x_adv, y)
    attacked = attack(Scaled(), x, y, seeds=range(64))
    assert attacked.zero_gradient is not None
    assert not attacked.zero_gradient.any()
    assert withstands(victim, attacked.x_adv, y).sum() <= plain.sum() + SLACK


def test_log_odds_order_points_as_the_cross_entropy_does() -> None:
    logits = 3 * torch.randn(200, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % 7
    odds = log_odds(logits, labels, None)
    torch.testing.assert_close(F.softplus(odds), F.cross_entropy(logits, labels, reduction="none"))
    torch.testing.assert_close(log_odds(logits, 0 * labels, labels), -odds)


def test_the_logits_ratio_is_torchattacks() -> None:
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    labels, goals = torch.arange(50) % 6, (torch.arange(50) + 2) % 6
    untargeted, targeted = torchattacks.APGD(nn.Identity()), torchattacks.APGDT(nn.Identity())
    torch.testing.assert_close(logits_ratio(logits, labels, None), untargeted.dlr_loss(logits, labels))
    torch.testing.assert_close(logits_ratio(logits, labels, goals), targeted.dlr_loss_targeted(logits, labels, goals))
    torch.testing.assert_close(logits_ratio(logits[:, :2], labels % 2, None), -margin(logits[:, :2], labels % 2))


def test_the_nearest_point_of_a_hyperplane_in_the_box() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(60, 40, generator=generator).mul(1.6).sub(0.3).clamp(0, 1)  # many on the edge of the box
    normal = torch.randn(60, 40, generator=generator)
    normal[:, ::5] = 0
    direction = torch.where(torch.arange(60) % 2 == 0, 1.0, -1.0)
    most = (normal * (torch.where(normal * direction[:, None] > 0, 1.0, 0.0) - x)).sum(dim=1)
    for share in (0.0, 0.1, 0.9, 1.2):
        change = onto_hyperplane(x, normal, share * most)
        assert (x + change).min() >= 0
        assert (x + change).max() <= 1
        torch.testing.assert_close((normal * change).sum(dim=1), min(share, 1) * most, rtol=1e-4, atol=1e-4)
        # No pixel moves less than the others but at the edge of the box.
        length = change.abs().amax(dim=1, keepdim=True)
        at_edge = ((x + change) < 1e-6) | ((x + change) > 1 - 1e-6)
        assert (at_edge | (normal == 0) | (change.abs() > length - 1e-6)).all()
    assert torch.equal(onto_hyperplane(x, torch.zeros_like(x), most), torch.zeros_like(x))


class Linear(nn.Module):
    """Logits of a linear classifier: distances to its boundaries are known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(4, 36, generator=torch.Generator().manual_seed(3)) / 6

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.weight.T


def test_fab_fools_what_lies_near_the_boundary_and_nothing_else() -> None:
    victim = Linear()
    x = 0.3 + 0.4 * torch.rand(100, 1, 6, 6, generator=torch.Generator().manual_seed(4))
    y = victim(x).argmax(dim=1)
    gaps = victim(x).gather(1, y[:, None]) - victim(x)
    lengths = (victim.weight[y][:, None] - victim.weight[None]).abs().sum(dim=2)
    distance = (gaps / lengths.clamp_min(1e-9)).scatter(1, y[:, None], torch.inf).amin(dim=1)
    radius = distance.median().item()
    attacked = FAB(epsilon=radius, steps=20)(victim, x, y, seeds=range(100))
    fooled = victim(attacked.x_adv).argmax(dim=1) != y
    away = (attacked.x_adv - x).flatten(1).abs().amax(dim=1)
    assert fooled[distance < 0.95 * radius].all()
    assert not fooled[distance > radius].any()
    assert away.max() <= radius + 1e-6
    assert (away[~fooled] > 0.99 * radius).all(), "the nearest that fools, cut to the ball"
    assert attacked.steps[fooled].float().mean() < attacked.steps[~fooled].float().mean()


def test_square_tries_as_many_squares_as_it_is_told(victim: nn.Module, images: Images) -> None:
    x, y = images
    attacked = Square(epsilon=0.02, queries=30)(victim, x, y, seeds=range(64))
    right, held = withstands(victim, x, y), withstands(victim, attacked.x_adv, y)
    assert attacked.queries[~right].eq(1).all()
    assert attacked.queries[held].eq(1 + 1 + 30).all()
    assert attacked.queries[right & ~held].lt(1 + 1 + 30).any()
    assert attacked.steps.eq(0).all()
    change = (attacked.x_adv - x)[held]
    surface = (change.abs() - 0.02).abs() < 1e-6
    edge = (attacked.x_adv[held] < 1e-6) | (attacked.x_adv[held] > 1 - 1e-6)
    assert (surface | edge).all(), "every pixel is as far as it may go"


def test_squares_shrink_as_the_authors_do(images: Images) -> None:
    whole = Square(rescale=False)
    sides = [whole._side(query, images[0]) for query in (0, 10, 11, *(after + 1 for after in HALVED_AFTER[1:]))]
    assert sides == [25, 25, 18, 13, 9, 6, 4, 3, 2, 2, 1]
    assert Square(queries=1000)._side(300, images[0]) == whole._side(3000, images[0])


def test_each_attack_takes_what_was_left(victim: nn.Module, images: Images) -> None:
    x, y = images
    auto = AutoAttack(epsilon=EPSILON, steps=20, queries=50)
    assert list(auto.attacks) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert list(AutoAttack(version="rand").attacks) == ["apgd-ce", "apgd-dlr"]
    attacked = auto(victim, x, y, seeds=range(64))
    right, held = withstands(victim, x, y), withstands(victim, attacked.x_adv, y)
    assert attacked.steps[~right].eq(0).all()
    assert torch.equal(attacked.x_adv[~right], x[~right])
    assert attacked.steps[held].eq(20 + 9 * 20 + 9 * 20).all()
    early = right & (attacked.steps <= 20)
    assert 5 < early.sum() < (~held).sum()
    # A forward pass at first in each attack, one on what it made, and squares only for those that are left.
    assert attacked.queries[early].le(2 + 2 * 21 + 1).all()
    assert attacked.queries[held].eq(1 + 4 * 2 + 2 * 21 + 9 * 2 * 21 + 9 * 20 * 3 + 51 + 1).all()


def test_an_attack_before_a_random_purifier_does_not_depend_on_the_batch(victim: nn.Module, images: Images) -> None:
    x, y = images
    attack = AutoAttack(epsilon=EPSILON, version="rand", steps=6)

    def attacked(rows: Tensor) -> Attacked:
        composite = Composite(victim, gaussian_noise(sigma=0.1), draws=2, seed=3)
        return attack(composite, x[rows], y[rows], seeds=rows.tolist())

    together, some = attacked(torch.arange(32)), torch.tensor([21, 3, 9])
    torch.testing.assert_close(attacked(some).x_adv, together.x_adv[some], rtol=0, atol=1e-5)
