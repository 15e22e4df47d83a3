import pytest
import torch
from torch import Tensor, nn

from raypurify.attacks import Composite
from raypurify.evaluation.masking import FINDINGS, MaskingCheck, findings, weaknesses
from raypurify.purifiers.gaussian_noise import GaussianNoise
from raypurify.purifiers.rounding import Rounding

FINE = {
    "zero_gradient_share": 0.0,
    "accuracy_multi_step": 0.2,
    "accuracy_single_step": 0.4,
    "accuracy_random_search": 0.9,
    "accuracy_unbounded": 0.0,
    "accuracy_straight_through": 0.2,
}


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 4)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def figures(victim: nn.Module, through: nn.Module | None, x: Tensor, y: Tensor) -> dict[str, float | None]:
    checked = MaskingCheck(epsilon=0.2)(victim, through, x, y, seeds=range(len(x)))
    shares: dict[str, float | None] = {"zero_gradient_share": checked["zero_gradient"].float().mean().item()}
    for name in ("multi_step", "single_step", "random_search", "unbounded", "straight_through"):
        predictions = checked.get(f"pred_{name}")
        shares[f"accuracy_{name}"] = None if predictions is None else (predictions == y).float().mean().item()
    return shares


def test_an_honest_gradient_raises_no_finding(classifier: nn.Module, x: Tensor) -> None:
    y = classifier(x).argmax(dim=1)
    shares = figures(classifier, None, x, y)
    assert findings(shares) == []
    assert shares["accuracy_straight_through"] is None
    assert shares["accuracy_random_search"] > shares["accuracy_multi_step"]


def test_the_plain_gradient_through_rounding_is_found_out_and_bpda_is_not(classifier: nn.Module, x: Tensor) -> None:
    purifier = Rounding(bits=4)
    y = classifier(purifier(x)).argmax(dim=1)
    assert {"zero_gradient", "unbounded"} <= set(findings(figures(Composite(classifier, purifier), None, x, y)))
    assert findings(figures(Composite(classifier, purifier, surrogate=nn.Identity()), None, x, y)) == []


class Saturated(nn.Module):
    """A clip that holds every pixel in a tenth of its range, and lets no gradient pass elsewhere."""

    def unclipped(self, x: Tensor) -> Tensor:
        return 8 * (x - 0.5) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.unclipped(x).clamp(0, 1)


def test_a_clip_that_hides_the_gradient_is_found_out(classifier: nn.Module, x: Tensor) -> None:
    edges = (x > 0.5).float() * 0.9 + 0.05
    y = classifier(Saturated()(edges)).argmax(dim=1)
    plain, through = (Composite(classifier, Saturated(), straight_through=passes) for passes in (False, True))
    check = MaskingCheck(epsilon=0.46, steps=10)(plain, through, edges, y, seeds=range(32))
    assert check["zero_gradient"].all()
    straight = (check["pred_straight_through"] == y).float().mean()
    assert straight < (check["pred_multi_step"] == y).float().mean() - 0.1


@pytest.mark.parametrize(
    ("name", "figure", "value"),
    [
        ("zero_gradient", "zero_gradient_share", 0.06),
        ("single_step", "accuracy_single_step", 0.18),
        ("random_search", "accuracy_random_search", 0.18),
        ("unbounded", "accuracy_unbounded", 0.06),
        ("straight_through", "accuracy_straight_through", 0.18),
    ],
)
def test_each_finding_has_its_figure(name: str, figure: str, value: float) -> None:
    assert findings(FINE) == []
    assert findings({**FINE, figure: value}) == [name]
    assert name in FINDINGS


def row(**changes: object) -> dict[str, object]:
    return {
        "attack": "pgd",
        "victim": "a_net",
        "norm": "linf",
        "eps": 0.3,
        "linf_max": 0.3,
        "accuracy_adversarial": 0.1,
        "accuracy_purified": 0.9,
        "zero_gradient_share": 0.0,
        "masking": None,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"zero_gradient_share": 0.5}, "vanishes on many images (50.0%)"),
        ({"linf_max": 0.078}, "no pixel moved by more than 0.078"),
        ({"linf_max": 0.4, "eps": 1.0}, "no pixel moved by more than 0.4"),
    ],
)
def test_attacks_that_are_too_weak_are_named_once(changes: dict[str, object], words: str) -> None:
    (text,) = weaknesses([row(**changes), row(), row(**changes, accuracy_purified=0.8)])
    assert text.startswith(f"pgd (ε = {changes.get('eps', 0.3):g}) on a_net: ")
    assert words in text


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_gradient_share": None},
        {"zero_gradient_share": 0.5, "masking": ["zero_gradient"]},  # told with the check's other findings
        {"linf_max": 0.0, "norm": None, "eps": None},
        {"linf_max": 0.0, "eps": None},  # an attack of the user's that names a norm and no radius
        {"linf_max": 0.5, "eps": 1.0},  # grey pixels can go no further
        {"linf_max": 0.1, "accuracy_adversarial": 0.0, "accuracy_purified": 0.0},
    ],
)
def test_attacks_that_are_not(changes: dict[str, object]) -> None:
    assert weaknesses([row(**changes)]) == []


def test_figures_that_are_not_known_find_nothing() -> None:
    assert findings({**FINE, "accuracy_straight_through": None}) == []


class Noisy(nn.Module):
    """Logits of two classes: the image's mean about a half, and noise anew in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        noise = 0.05 * torch.randn(len(x), generator=self.generator)
        ahead = x.flatten(1).mean(dim=1) - 0.5 + noise
        return torch.stack([ahead, -ahead], dim=1)


def test_random_search_does_not_take_noise_for_an_attack() -> None:
    x, y = torch.full((400, 1, 8, 8), 0.55), torch.zeros(400, dtype=torch.int64)
    checked = MaskingCheck(epsilon=0.0, steps=2)(Noisy(), None, x, y, seeds=range(400))
    right = {name: (value == y).float().mean().item() for name, value in checked.items() if name != "zero_gradient"}
    assert 0.8 < right["pred_multi_step"] < 0.9, "84% lie above minus one deviation"
    assert right["pred_random_search"] == pytest.approx(right["pred_multi_step"], abs=0.06)


@pytest.mark.parametrize("random", [False, True])
def test_the_check_repeats_itself_in_any_batch(random: bool, classifier: nn.Module, x: Tensor) -> None:
    y = classifier(x).argmax(dim=1)

    def check(rows: list[int]) -> dict[str, Tensor]:
        noisy = Composite(classifier, GaussianNoise(sigma=0.3), seed=1)
        return MaskingCheck(epsilon=0.1)(noisy if random else classifier, None, x[rows], y[rows], seeds=rows)

    whole = check(list(range(32)))
    for rows in ([9, 10, 11], [4], [17, 30]):
        assert all(
            torch.equal(value[rows], part) for value, part in zip(whole.values(), check(rows).values(), strict=True)
        )
