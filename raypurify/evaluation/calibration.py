"""The parameters of an attack at which an undefended classifier is as accurate as somebody's figure says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypurify.metrics import wilson_interval

MARGIN = 0.005
"""A calibrated attack is to leave an accuracy that is lower than the target by this much."""
COLUMNS = ("label", "pred_clean", "pred_adversarial", "pred_purified", "pred_clean_purified", "l2")
SIMILARITIES = ("ssim_purified", "psnr_purified")


def radius_at(target: float, accuracies: Mapping[float, float]) -> float:
    """The radius at which an attack leaves an accuracy just below a target, to three digits.

    Between two radii it is interpolated, on a logarithmic scale. Where no radius is large enough it is the largest.

    Args:
        target: accuracy, in [0, 1].
        accuracies: by the radii at which they were measured.
    """
    aim = target - MARGIN
    radii = sorted(accuracies)
    for lower, upper in zip([radii[0], *radii], radii, strict=False):
        if accuracies[upper] <= aim:
            before, after = accuracies[lower], accuracies[upper]
            part = 1.0 if before <= after else (before - aim) / (before - after)
            return _three_digits(lower * (upper / lower) ** part)
    return _three_digits(radii[-1])


def distance_at(target: float, scores: pa.Table) -> float | None:
    """The L2 distance at which an attacker who goes no further leaves an accuracy just below a target.

    Args:
        target: accuracy, in [0, 1].
        scores: of an attack that searches for the least change; the columns label, pred_clean, pred_adversarial, l2.

    Returns:
        None where the attack leaves more than that however far it goes.
    """
    label, clean, attacked, l2 = (scores[name].to_numpy() for name in ("label", *COLUMNS[1:3], "l2"))
    distances = np.sort(l2[(clean == label) & (attacked != label)])
    needed = math.ceil(round((clean == label).sum() - (target - MARGIN) * len(label), 6))
    if needed <= 0:
        return 0.0
    return _three_digits(float(distances[needed - 1])) if needed <= len(distances) else None


def within(scores: pa.Table, distance: float | None) -> dict[str, Any]:
    """Figures of a cell, under their names in ``schema.SUMMARY``, whose attacker goes no further than a distance.

    An image that it would have changed by more stays as it is. The similarities are of the images that it changed.

    Args:
        scores: the cell's; the columns :data:`COLUMNS` and :data:`SIMILARITIES`.
        distance: L2; None: the attacker goes as far as it must.
    """
    label = scores["label"].to_numpy()
    l2 = scores["l2"].to_numpy()
    reached = (l2 <= (np.inf if distance is None else distance)) & (l2 > 0)

    def right(attacked: str, clean: str) -> NDArray[np.bool_]:
        return np.where(reached, scores[attacked].to_numpy(), scores[clean].to_numpy()) == label

    purified = right("pred_purified", "pred_clean_purified")
    clean = scores["pred_clean"].to_numpy() == label
    low, high = wilson_interval(int(purified.sum()), len(label))
    similarity = {
        name: float(np.mean(scores[name].to_numpy()[reached])) if reached.any() else None for name in SIMILARITIES
    }
    return {
        "n": len(label),
        "accuracy_clean": float(clean.mean()),
        "accuracy_adversarial": float(right("pred_adversarial", "pred_clean").mean()),
        "accuracy_purified": float(purified.mean()),
        "accuracy_purified_low": low,
        "accuracy_purified_high": high,
        "accuracy_clean_purified": float((scores["pred_clean_purified"].to_numpy() == label).mean()),
        **similarity,
    }


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")
