"""On MNIST's A-net an image does not depend on the batch it was attacked in, nor on its place there."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raypurify import models, plugins
from raypurify.attacks import Attack
from raypurify.data import open_source, read_rows
from raypurify.training.batches import batch_of

ROOT = Path(__file__).parents[2]
IMAGES = 128
FEWER = {1: 24, 7: 63}
"""Images of the batches that would take long."""
QUICK = {
    "apgd": {"epsilon": 0.1, "steps": 10},
    "auto_attack": {"epsilon": 0.1, "steps": 10, "queries": 100},
    "carlini_wagner": {"search_steps": 3, "steps": 40},
    "fab": {"epsilon": 0.1, "steps": 10},
    "pgd": {"steps": 10},
    "pgd_l2": {"steps": 5},
    "square": {"queries": 200},
    "stadv": {"steps": 60},
}
"""Parameters where the defaults take long."""
TIES = 0.01
"""Share of the images that may differ: where a gradient is 0 to rounding, its sign turns on the order of a sum."""
SLOW = ("auto_attack", "carlini_wagner", "rotation_translation", "stadv")
ATTACKS = [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
    for name in plugins.known("raypurify.attacks")
    if name != "none"
]

pytestmark = pytest.mark.skipif("RAYPURIFY_DATA" not in os.environ, reason="RAYPURIFY_DATA is not set: no real MNIST")


@pytest.fixture(scope="module")
def victim() -> nn.Module:
    return models.placed(models.load("classifier", str(ROOT / "weights" / "mnist" / "a_net")).build(), "cpu")


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    rows = read_rows(open_source("mnist", split="test").shards[0], 0, IMAGES)
    batch = batch_of(np.asarray(rows.images), rows.labels, (), "cpu")
    return batch.x.contiguous(), batch.y


def attacked(attack: Attack, victim: nn.Module, x: Tensor, y: Tensor, order: Tensor, batch: int) -> Tensor:
    """The images of ``order``, attacked in that order and in batches of this size."""
    parts = [
        attack(victim, x[rows], y[rows], seeds=[1000 + int(row) for row in rows]).x_adv for rows in order.split(batch)
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_image_does_not_depend_on_its_batch(name: str, victim: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    attack = plugins.build("raypurify.attacks", plugins.Spec(name=name, params=QUICK.get(name, {})))
    everyone = torch.arange(IMAGES)
    together = attacked(attack, victim, *images, everyone, IMAGES)
    again = attacked(attack, victim, *images, everyone, IMAGES)
    assert torch.equal(together, again), "a block that is tried again repeats itself"
    shuffled = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))
    runs = {"shuffled": (shuffled, IMAGES), "ones": (shuffled[: FEWER[1]], 1), "sevens": (shuffled[: FEWER[7]], 7)}
    for kind, (order, batch) in runs.items():
        differences = (attacked(attack, victim, *images, order, batch) - together[order]).abs().flatten(1).amax(dim=1)
        unequal = int((differences > 1e-5).sum())
        print(f"{name}, {kind}: {unequal} of {len(order)} images differ by more than 1e-5")
        assert unequal <= TIES * len(order), f"{kind}: {unequal} of {len(order)}"
