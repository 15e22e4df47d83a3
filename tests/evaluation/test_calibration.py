"""Attacks are as strong as a figure says, and no stronger."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from raypurify.data import labels_of, names_of, open_source
from raypurify.evaluation.calibration import MARGIN, distance_at, radius_at, within
from raypurify.training.order import hold_out

ACCURACIES = {0.1: 0.9, 0.2: 0.5, 0.4: 0.1}


def test_a_radius_lies_where_accuracy_falls_below_the_target() -> None:
    assert radius_at(0.5 + MARGIN, ACCURACIES) == 0.2
    between = radius_at(0.3, ACCURACIES)
    assert 0.2 < between < 0.4
    assert between > radius_at(0.35, ACCURACIES), "a lower target needs a larger radius"
    assert radius_at(0.95, ACCURACIES) == 0.1
    assert radius_at(0.05, ACCURACIES) == 0.4, "the largest, where none is large enough"


def test_a_single_step_attack_whose_accuracy_rises_again_is_calibrated_where_it_falls() -> None:
    assert radius_at(0.2, {0.1: 0.6, 0.2: 0.15, 0.4: 0.3}) < 0.2


def scores() -> pa.Table:
    """Ten images of class 1: one wrong at first, one that the attack did not fool, eight fooled at distances 1 to 8."""
    fooled = 8
    return pa.table(
        {
            "label": np.ones(10, np.int64),
            "pred_clean": [0] + [1] * 9,
            "pred_adversarial": [0, 1] + [0] * fooled,
            "pred_purified": [0, 1] + [1] * 4 + [0] * 4,
            "pred_clean_purified": [0] + [1] * 9,
            "l2": [0.0, 0.0, *map(float, range(1, fooled + 1))],
            "ssim_purified": [1.0, 1.0, *(1 - 0.1 * number for number in range(fooled))],
            "psnr_purified": [100.0, 100.0, *(40.0 - number for number in range(fooled))],
        }
    )


@pytest.mark.parametrize(("target", "distance"), [(0.61, 3.0), (0.6, 4.0), (0.11, 8.0), (0.05, None), (0.95, 0.0)])
def test_a_distance_leaves_just_less_than_the_target(target: float, distance: float | None) -> None:
    assert distance_at(target, scores()) == distance
    left = within(scores(), distance)["accuracy_adversarial"]
    assert left <= target - MARGIN or distance is None
    if distance:
        assert within(scores(), distance - 1)["accuracy_adversarial"] > target - MARGIN


def test_images_beyond_the_distance_stay_clean() -> None:
    figures = within(scores(), 5.0)
    assert figures["n"] == 10
    assert figures["accuracy_clean"] == figures["accuracy_clean_purified"] == 0.9
    assert figures["accuracy_adversarial"] == pytest.approx(0.4)
    assert figures["accuracy_purified"] == pytest.approx(0.8), "one of the five that were changed is not restored"
    assert figures["ssim_purified"] == pytest.approx(np.mean([1.0, 0.9, 0.8, 0.7, 0.6]))
    assert within(scores(), None)["accuracy_purified"] == pytest.approx(0.5)
    nothing = within(scores(), 0.0)
    assert (nothing["accuracy_adversarial"], nothing["ssim_purified"]) == (0.9, None)


def test_images_that_a_training_held_out_are_a_dataset() -> None:
    source = open_source("digits", split="train")
    trained, held = hold_out(source, labels_of(source), 50, 7)
    given = open_source("raypurify.training.held_out:held_out,data=digits,images=50,seed=7", split="test")
    assert names_of(given) == names_of(held)
    assert not set(names_of(given)) & set(names_of(trained))
    other = open_source("raypurify.training.held_out:held_out,data=digits,images=50,seed=8", split="test")
    assert other.fingerprint != given.fingerprint
