"""A random purifier that is drawn many times on each attacked image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import raypurify
from raypurify import models, storage
from raypurify.evaluation.batch import Evaluator
from raypurify.evaluation.grid import EvaluationConfig, build_grid
from raypurify.runs import schema
from raypurify.seeds import seed_of

NOISE = "gaussian_noise,sigma=0.15"


def evaluated(output: Path, **more: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the summary, and of the scores in the order of the ids."""
    flags: dict[str, Any] = {"attacks": ["none"], "settings": ["white-box"], "purifiers": [NOISE, "jpeg"]}
    summary = raypurify.evaluate(
        data="digits", limit=30, classifiers=["weights/mnist/a_net"], output=output, engine="local", **{**flags, **more}
    )
    (noisy,) = (row["cell"] for row in summary.to_pylist() if row["purifier"] == NOISE)
    scores = storage.read_tables(storage.list_files(f"{output}/scores/cell={noisy}"), schema.SCORES)
    return summary.to_pylist(), scores.sort_by("id").to_pylist()


def test_draws_are_counted_and_vote(tmp_path: Path) -> None:
    summary, scores = evaluated(tmp_path / "five", draws=5)
    noisy, steady = summary
    right = np.array([row["right_draws"] for row in scores])
    assert {row["draws"] for row in scores} == {5}
    assert len(set(right.tolist())) > 2, "noise that decides nothing"
    assert noisy["accuracy_draws"] == pytest.approx(right.mean() / 5)
    assert noisy["accuracy_all_draws"] == (right == 5).mean()
    assert noisy["accuracy_majority"] == np.mean([row["pred_majority"] == row["label"] for row in scores])
    assert all(row["pred_majority"] == row["label"] for row in scores if row["right_draws"] > 2)
    assert noisy["accuracy_all_draws"] < noisy["accuracy_draws"]
    assert (steady["draws"], steady["accuracy_draws"], steady["accuracy_majority"]) == (None, None, None)
    once, first = evaluated(tmp_path / "one")
    assert [row["pred_purified"] for row in first] == [row["pred_purified"] for row in scores]
    assert once[0]["accuracy_purified"] == noisy["accuracy_purified"]
    assert once[0]["draws"] is None


def test_each_draw_is_of_a_seed_of_its_own_and_of_the_image_s() -> None:
    network, noise = models.load_network("weights/mnist/a_net"), models.load_network(NOISE)
    x, _ = raypurify.load_images("digits", limit=10)
    ids = [f"image {number}" for number in range(10)]
    config = EvaluationConfig(
        data="digits", classifiers=("weights/mnist/a_net",), purifiers=(NOISE,), attacks=("none",), draws=4
    )
    evaluator = Evaluator(build_grid(config, "digits", 10), "cpu")
    (scored,) = evaluator.evaluate(x, torch.zeros(10, dtype=torch.int64), ids)
    expected = torch.zeros(10, dtype=torch.int64)
    for draw in range(4):
        seeds = [seed_of(0, "purify", name, *([draw] if draw else [])) for name in ids]
        with torch.no_grad():
            expected += network(noise(x, seeds)).argmax(dim=1) == 0
    assert scored.scores["right_draws"].to_pylist() == expected.tolist()


def test_draws_are_part_of_the_cells_of_random_purifiers_alone() -> None:
    hashes = []
    for draws in (1, 2):
        names: dict[str, Any] = {"classifiers": ("weights/mnist/a_net",), "purifiers": (NOISE, "jpeg")}
        config = EvaluationConfig(data="digits", attacks=("none",), draws=draws, **names)
        hashes.append([cell.hash for cell in build_grid(config, "digits", 10).cells])
    assert hashes[0][0] != hashes[1][0]
    assert hashes[0][1] == hashes[1][1]
    with pytest.raises(ValueError, match="eot and draws must be at least 1"):
        EvaluationConfig(data="digits", classifiers=("a",), draws=0)
