"""Carlini-Wagner finds near images on networks of different scales, without a rate for each."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from raypurify import models
from raypurify.attacks.carlini_wagner import CarliniWagner
from raypurify.data import open_source, read_rows
from raypurify.training.batches import batch_of

WEIGHTS = Path(__file__).parents[2] / "weights"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("RAYPURIFY_DATA" not in os.environ, reason="RAYPURIFY_DATA is not set: no real images"),
]


@pytest.mark.parametrize(
    ("dataset", "classifier", "n", "largest"),
    [
        # Foolbox 3.3.4, L2CarliniWagnerAttack with 5 searches of 200 steps: 0.233.
        pytest.param("cifar10", "cifar10/d_net", 32, 1.05 * 0.233, id="d_net"),
        # With one rate of 0.1 throughout, as suits A-net alone: 0.975.
        pytest.param("mnist", "mnist/a_net", 200, 0.975, id="a_net"),
    ],
)
def test_carlini_wagner_finds_near_images(dataset: str, classifier: str, n: int, largest: float) -> None:
    rows = read_rows(open_source(dataset, split="test").shards[0], 0, n)
    batch = batch_of(np.asarray(rows.images), rows.labels, (), "cpu")
    victim = models.placed(models.load("classifier", str(WEIGHTS / classifier)).build(), "cpu")
    attacked = CarliniWagner(search_steps=5, steps=200)(victim, batch.x, batch.y, seeds=range(n))
    with torch.no_grad():
        right, failed = (victim(x).argmax(dim=1) == batch.y for x in (batch.x, attacked.x_adv))
    l2 = (attacked.x_adv - batch.x).flatten(1).norm(dim=1).masked_fill(failed, torch.inf)
    median = l2[right].median().item()
    print(f"{classifier}: median L2 {median:.4f}, mean steps {attacked.steps.float().mean():.0f}")
    assert median <= largest
