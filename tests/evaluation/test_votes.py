"""Images that the vote of a smoothed classifier cannot tell are told as detected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import raypurify
from raypurify import models, storage
from raypurify.attacks import abstains
from raypurify.evaluation.grid import EvaluationConfig, build_grid
from raypurify.runs import schema


class Bright(nn.Module):
    """Class 1 where the mean is above a half."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


def test_a_vote_abstains_where_two_answers_may_be_equally_likely() -> None:
    identity = models.load("purifier", "identity").build()
    values = torch.linspace(0, 1, 41)
    x = values.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    told = abstains(Bright(), identity, x, range(41), draws=100, sigma=0.4)
    sure = stats.norm.cdf((values.numpy() - 0.5).__abs__() / 0.2)
    assert told[sure < 0.6].all()
    assert not told[sure > 0.8].any()
    assert torch.equal(abstains(Bright(), identity, x[3:30], range(3, 30), draws=100, sigma=0.4), told[3:30])
    needed = next(count for count in range(101) if stats.binomtest(count, 100).pvalue <= 0.001 and count > 50)
    for count, abstained in ((needed - 1, True), (needed, False)):
        assert bool(abstains(Fixed(count), identity, x[:1], [0], draws=100, sigma=1.0)[0]) is abstained


class Fixed(nn.Module):
    """Class 2 in its first answers, then class 0."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        self.times -= 1
        return nn.functional.one_hot(torch.full((len(x),), 2 if self.times >= 0 else 0), 3).float()


def test_an_evaluation_tells_votes_that_abstain_as_detected(tmp_path: Path) -> None:
    flags: dict[str, Any] = {"attacks": ["fgsm,epsilon=0.2"], "purifiers": ["identity"], "engine": "local"}
    flags |= {"data": "digits", "limit": 30, "classifiers": ["weights/mnist/a_net"]}
    flags |= {"certify_draws": 30, "certify_sigma": 0.2}
    (row,) = raypurify.evaluate(**flags, output=tmp_path / "run").to_pylist()
    scores = storage.read_tables(storage.list_files(f"{tmp_path}/run/scores"), schema.SCORES).to_pylist()
    assert row["detection_rate"] == pytest.approx(sum(one["detected"] for one in scores) / 30)
    assert row["false_alarm_rate"] == pytest.approx(sum(one["detected_clean"] for one in scores) / 30)
    assert len({row["false_alarm_rate"], row["detection_rate"], 0.0, 1.0}) == 4
    kept = [one["detected"] or one["pred_purified"] == one["label"] for one in scores]
    assert row["accuracy_with_detection"] == pytest.approx(sum(kept) / 30)
    assert "Detect" in (tmp_path / "run" / "report.html").read_text()
    (other,) = raypurify.evaluate(**flags, batch=7, stages="apart", output=tmp_path / "apart").to_pylist()
    assert other["detection_rate"] == row["detection_rate"]


def test_a_vote_is_part_of_a_cell_and_of_its_size() -> None:
    names: dict[str, Any] = {"data": "digits", "classifiers": ("weights/mnist/a_net",), "attacks": ("none",)}
    votes = [{}, {"certify_sigma": 0.5}, {"certify_draws": 20}, {"certify_draws": 20, "certify_sigma": 0.5}]
    grids = [build_grid(EvaluationConfig(**names, **vote), "digits", 10) for vote in votes]
    hashes = [grid.cells[0].hash for grid in grids]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


@pytest.mark.parametrize(
    ("flags", "told"),
    [({"certify_draws": 10}, "at least 11"), ({"certify_draws": 20, "certify_sigma": 0.0}, "certify_sigma must be")],
)
def test_a_vote_that_could_settle_nothing_is_refused(flags: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        EvaluationConfig(data="digits", classifiers=("a",), **flags)
