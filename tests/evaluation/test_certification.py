"""Certificates: bounds, radii and votes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from raypurify import models
from raypurify.evaluation import certificate_attacks, certification
from raypurify.evaluation.certification import CertificationConfig, Smoothed

ALPHA = 0.001


def test_radii_of_counts_are_those_of_cohens_formula() -> None:
    generator = np.random.default_rng(0)
    draws = 5000
    counts = generator.integers(0, draws + 1, 1000)
    counts[:3] = 0, draws, draws // 2
    bounds = certification.bound_of(counts, draws, ALPHA)
    for count, bound in zip(counts.tolist(), bounds.tolist(), strict=True):
        # The interval of Clopper and Pearson: the least p at which so many, or more, have a chance of alpha.
        expected = stats.binomtest(count, draws, alternative="greater").proportion_ci(1 - ALPHA, "exact").low
        assert bound == pytest.approx(expected, abs=1e-9)
    radii = certification.radius_of(bounds, 0.5)
    expected = np.where(bounds > 0.5, 0.5 * stats.norm.ppf(bounds), 0)
    np.testing.assert_allclose(radii, expected, atol=1e-6)
    assert radii.max() == pytest.approx(0.5 * stats.norm.ppf(ALPHA ** (1 / draws)), abs=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_radii_of_counts_are_arts() -> None:
    smoothing = pytest.importorskip("art.estimators.certification.randomized_smoothing.randomized_smoothing")
    pytest.importorskip("statsmodels")
    generator = np.random.default_rng(1)
    draws, sigma = 5000, 0.5
    counts = np.concatenate([[0, draws, draws // 2], generator.integers(0, draws + 1, 997)])

    class Counted(smoothing.RandomizedSmoothingMixin):  # type: ignore[misc,name-defined]
        """Draws of an image, of which so many are of class 0 as the image says."""

        def _prediction_counts(self, x: np.ndarray, n: int, batch_size: int) -> np.ndarray:
            return np.array([n, 0]) if n == 100 else np.array([int(x), n - int(x)])

        def _fit_classifier(self) -> None: ...

        def _predict_classifier(self) -> None: ...

    classes, expected = Counted(sample_size=100, scale=sigma, alpha=ALPHA).certify(counts, draws)
    bounds = certification.bound_of(counts, draws, ALPHA)
    np.testing.assert_allclose(certification.radius_of(bounds, sigma), np.where(classes == 0, expected, 0), atol=1e-6)
    assert (classes == 0).sum() > 300


@pytest.mark.parametrize("p", [0.5, 0.8, 0.97, 0.999])
def test_bounds_are_seldom_wrong(p: float) -> None:
    runs, draws, alpha = 2000, 400, 0.02
    generator = np.random.default_rng(int(1000 * p))
    counts = generator.binomial(draws, p, runs)
    wrong = int((certification.bound_of(counts, draws, alpha) > p).sum())
    assert stats.binomtest(wrong, runs, alpha, alternative="greater").pvalue > 1e-4
    if p < 0.99:  # so near to 1 even draws that are all of one class prove little
        assert wrong > runs * alpha / 4, "it is no wider than it must be"


@pytest.mark.parametrize("p", [0.5, 0.8, 0.97])
def test_a_sequences_interval_holds_whenever_it_stops(p: float) -> None:
    runs, alpha = 2000, 0.05
    generator = np.random.default_rng(int(1000 * p))
    times = np.arange(100, 2001, 100)
    wrong = 0
    for increments in generator.binomial(100, p, (runs, len(times))):
        counts = np.cumsum(increments)
        # The worst moment to stop at.
        intervals = [
            certification.sequence_of(int(c), int(t), alpha) for c, t in zip(counts[::5], times[::5], strict=True)
        ]
        wrong += any(not low <= p <= high for low, high in intervals)
    assert stats.binomtest(wrong, runs, alpha, alternative="greater").pvalue > 1e-4


def test_a_sequences_interval_narrows_and_lies_around_the_share() -> None:
    for count, draws in ((0, 100), (100, 100), (70, 100), (7000, 10000)):
        low, high = certification.sequence_of(count, draws, ALPHA)
        assert 0 <= low <= count / draws <= high <= 1
        assert low <= certification.bound_of(np.array([count]), draws, ALPHA)[0] + 1e-9, "it is sure of more"
    assert certification.sequence_of(70, 100, ALPHA)[0] < certification.sequence_of(7000, 10000, ALPHA)[0]
    # By hand: the likelihood of 100 of 100 at p, p^100, is alpha times its mean under Jeffreys' prior, 0.0563.
    assert certification.sequence_of(100, 100, ALPHA)[0] == pytest.approx((0.0563485 * ALPHA) ** 0.01, abs=1e-6)
    assert certification.sequence_of(0, 100, ALPHA)[0] == 0
    assert certification.sequence_of(100, 100, ALPHA)[1] == 1


class Bright(nn.Module):
    """Class 1 where the mean is above a half."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


def smoothed(batch: int = 250, purifier: str = "identity", **more: object) -> Smoothed:
    config = CertificationConfig(data="digits", classifiers=("a",), **more)  # type: ignore[arg-type]
    return Smoothed((Bright().eval(), models.load("purifier", purifier).build()), 1.0, config, "cpu", batch)


def test_votes_are_those_of_the_noise_whatever_the_batch() -> None:
    x = torch.stack([torch.full((1, 2, 2), value) for value in (0.3, 0.5, 0.9)])
    ids = ["a", "b", "c"]
    votes = smoothed().votes(x, ids, "count", 0, 1000)
    assert votes.sum(dim=1).tolist() == [1000] * 3
    for image, vote in zip(x, votes.tolist(), strict=True):
        expected = stats.norm.cdf((image.mean().item() - 0.5) / 0.5)
        assert abs(vote[1] / 1000 - expected) < 4 * (expected * (1 - expected) / 1000) ** 0.5 + 1e-9
    assert torch.equal(smoothed(batch=7).votes(x, ids, "count", 0, 1000), votes)
    alone = smoothed().votes(x[1:2], ["b"], "count", 0, 1000)
    assert torch.equal(alone[0], votes[1])
    parts = [smoothed().votes(x, ids, "count", first, draws) for first, draws in ((0, 100), (100, 650), (800, 200))]
    late = smoothed().votes(x, ids, "count", 700, 100)
    assert torch.equal(sum(parts[1:], parts[0]) + late - smoothed().votes(x, ids, "count", 700, 50), votes)
    assert not torch.equal(smoothed().votes(x, ids, "guess", 0, 1000), votes)
    assert not torch.equal(smoothed(seed=1).votes(x, ids, "count", 0, 1000), votes)


def test_a_random_purifier_draws_with_each_noise() -> None:
    x = torch.full((1, 1, 2, 2), 0.6)
    plain = smoothed().votes(x, ["a"], "count", 0, 2000)
    more = smoothed(purifier="gaussian_noise,sigma=3").votes(x, ["a"], "count", 0, 2000)
    assert not torch.equal(more, plain)
    assert torch.equal(smoothed(batch=30, purifier="gaussian_noise,sigma=3").votes(x, ["a"], "count", 0, 2000), more)


def test_an_image_that_is_decided_early_takes_few_draws() -> None:
    near, far = (torch.full((1, 2, 2), value) for value in (0.8, 2.0))
    one = smoothed(procedure="sequential", radii=(1.0,))
    easy = certification.decided(one, far, "a", 1)
    assert easy["right"]
    assert easy["radius"] >= 1.0
    assert easy["draws"] <= 300
    hard = certification.decided(one, near, "a", 1)
    assert hard["radius"] < 1.0, "it is known that it is not safe there, and no more is asked"
    wrong = certification.decided(one, far, "a", 0)
    assert not wrong["right"]
    assert wrong["guess"] == 1
    undecided = certification.decided(smoothed(procedure="sequential", radii=(0.0,), draws=200), near * 0 + 0.5, "a", 1)
    assert undecided["draws"] == 200
    assert undecided["abstained"]
    beyond = smoothed(procedure="sequential", radii=(0.5, 9.0), draws=5000)
    assert certification.decided(beyond, far, "a", 1)["draws"] <= 300, "no 5,000 draws would prove a radius of 9"


def test_large_images_have_smaller_blocks() -> None:
    assert certification.block_of((1, 28, 28)) == 100
    assert certification.block_of((3, 224, 224)) == 25
    assert certification.block_of((3, 4000, 4000)) == 1
    x = torch.full((1, 3, 300, 300), 0.5)
    votes = smoothed().votes(x, ["a"], "count", 0, 30)
    assert torch.equal(smoothed(batch=4).votes(x, ["a"], "count", 0, 30), votes)
    assert torch.equal(sum(smoothed().votes(x, ["a"], "count", first, 10) for first in (0, 10, 20)), votes)


def test_an_attack_goes_around_a_purifier_without_a_gradient() -> None:
    x = torch.full((1, 2, 2), 0.7)
    for purifier in ("identity", "rounding"):
        one = smoothed(purifier=purifier, draws=400)
        certified = {"id": "a", "guess": 1, "right": True}
        within, near, far = certificate_attacks.attacked(one, x, {**certified, "radius": 0.4}, (0.1, 0.41, 0.9, 2.0))
        assert within["l2"] == pytest.approx(0.99 * 0.4, abs=1e-4)
        assert within["answer"] == near["answer"] == 1, "the boundary is 0.4 away, where a vote is still a toss-up"
        assert (far["at"], far["answer"]) == (0.9, 0), "and there it ends"
        (row,) = certificate_attacks.attacked(one, x, {**certified, "radius": 0.8}, ())
        assert row["answer"] == 0
        assert certificate_attacks.is_wrong(row)
        assert not [*certificate_attacks.attacked(one, x, {**certified, "radius": 0.0, "right": False}, (1.0,))]


def test_accuracy_under_attack_is_that_of_what_no_attack_changed() -> None:
    rows = [{"id": name, "guess": 1, "right": name != "d", "radius": 0.5} for name in "abcd"]
    held, changed = [600, 400], [1000, 0]
    attack = {"guess": 1, "radius": 0.5}
    made = [
        {**attack, "id": "a", "at": 0.495, "answer": 0, "votes": [501, 499]},
        {**attack, "id": "a", "at": 1.0, "answer": 1, "votes": held[::-1]},
        {**attack, "id": "a", "at": 2.0, "answer": 0, "votes": changed},
        {**attack, "id": "b", "at": 0.495, "answer": 0, "votes": changed},
        {**attack, "id": "b", "at": 1.0, "answer": 0, "votes": changed},
        {**attack, "id": "c", "at": 0.495, "answer": 1, "votes": held[::-1]},
        {**attack, "id": "c", "at": 1.0, "answer": 0, "votes": held},
    ]
    shares = [certificate_attacks.empirical(made, rows, radius) for radius in (0.0, 0.4, 0.5, 1.0, 2.0)]
    assert shares == [0.75, 0.75, 0.5, 0.25, 0.0]
    assert certificate_attacks.empirical([], [], 1.0) is None
    assert certificate_attacks.covers(made, rows, (0.4, 1.0, 2.0))
    assert not certificate_attacks.covers(made, rows, (0.4, 0.7))
    assert not certificate_attacks.covers(made[1:], rows, (0.4,))
    assert certificate_attacks.covers(made, rows, (3.0,)), "lost at 2.0 already"


def test_a_vote_that_is_merely_lost_proves_no_certificate_wrong() -> None:
    assert not certificate_attacks.is_wrong({"guess": 1, "votes": [5010, 4990]})
    assert certificate_attacks.is_wrong({"guess": 1, "votes": [5400, 4600]})
    assert not certificate_attacks.is_broken(0, 20, ALPHA, 1)
    assert not certificate_attacks.is_broken(1, 20, ALPHA, 1)
    assert certificate_attacks.is_broken(2, 20, ALPHA, 1)
    assert not certificate_attacks.is_broken(2, 100, ALPHA, 10)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"sigmas": (0.0,)}, "sigmas must be above 0"),
        ({"radii": (-1.0,)}, "radii at least 0"),
        ({"alpha": 0.5}, "alpha must be above 0 and below 0.5"),
        ({"draws": 0}, "draws, guesses and every must be at least 1"),
        ({"radii": ()}, "radii must name at least one"),
    ],
)
def test_what_cannot_be_certified_is_refused(flags: dict[str, tuple[float, ...]], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CertificationConfig(data="digits", classifiers=("a",), **flags)  # type: ignore[arg-type]
