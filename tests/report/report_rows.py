"""Rows of a summary, made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raypurify import storage
from raypurify.plugins import known
from raypurify.runs import schema

HOSTILE = "<script>alert(1)</script>\"'>&{{ 7*7 }}"


def cell(
    *,
    attack: str = "pgd",
    purifier: str = "cru_net",
    setting: str = "white-box",
    classifier: str = "a_net",
    eps: float | None = 0.3,
    params: dict[str, Any] | str | None = None,
    clean: float = 0.9935,
    adversarial: float = 0.0123,
    purified: float = 0.9731,
    **more: Any,
) -> dict[str, Any]:
    """One row of a summary; every figure differs from every other, so that a mix-up shows."""
    params = {"epsilon": eps, "steps": 40} if params is None else params
    text = params if isinstance(params, str) else json.dumps(params)
    row = {
        "cell": f"{setting}-{classifier}-{attack}-{purifier}-{eps}-{text}",
        "dataset": "digits",
        "setting": setting,
        "attack": attack,
        "norm": None if eps is None else "linf",
        "eps": eps,
        "params": text,
        "victim": {"adaptive": f"{purifier}+{classifier}", "transfer": "b_net"}.get(setting, classifier),
        "classifier": classifier,
        "purifier": purifier,
        "radius": None if eps is None else "epsilon",
        "trivial": purifier in known("raypurify.purifiers") and purifier != "cru_net",
        "n": 1797,
        "accuracy_clean": clean,
        "accuracy_adversarial": adversarial,
        "accuracy_purified": purified,
        "accuracy_purified_low": purified - 0.0071,
        "accuracy_purified_high": purified + 0.0069,
        "accuracy_clean_purified": 0.9876,
        "success_rate_eq14": purified / clean if clean else None,
        "psnr_adversarial": 11.22,
        "psnr_purified": 22.34,
        "psnr_clean_purified": 33.45,
        "ssim_adversarial": 0.4321,
        "ssim_purified": 0.8765,
        "ssim_clean_purified": 0.9543,
        "psnr_purified_eq16": 70.47,
        "linf_max": 0.29999,
        "l2_median": 5.4321,
        "steps_mean": 38.25,
        "steps_max": 40,
        "queries_mean": 1076.5,
        "queries_max": 1080,
        "masking_n": 0,
        "zero_gradient_share": None,
        **dict.fromkeys(f"accuracy_{attack}" for attack in schema.MASKING_ATTACKS),
        "masking": None,
        "detection_rate": None,
        "false_alarm_rate": None,
        "accuracy_with_detection": None,
        "accuracy_worst": None,
        "draws": None,
        "accuracy_draws": None,
        "accuracy_all_draws": None,
        "accuracy_majority": None,
    }
    return row | more


def checked(*found: str, **figures: float | None) -> dict[str, Any]:
    """The columns of a cell that was checked for masked gradients, for :func:`cell`."""
    return {
        "masking_n": 203,
        "zero_gradient_share": 0.0049,
        "accuracy_multi_step": 0.4103,
        "accuracy_single_step": 0.5204,
        "accuracy_random_search": 0.6305,
        "accuracy_unbounded": 0.0106,
        "accuracy_straight_through": None,
        "masking": list(found),
        **figures,
    }


def curve(attack: str, shares: dict[float, tuple[float, float, float | None]], **more: Any) -> list[dict[str, Any]]:
    """An attack's cells at several radii, for each: no defense, purified, adaptive (None: not run)."""
    rows = []
    for eps, (adversarial, purified, adaptive) in shares.items():
        rows.append(cell(attack=attack, eps=eps, adversarial=adversarial, purified=purified, **more))
        if adaptive is not None:
            rows.append(cell(attack=attack, eps=eps, setting="adaptive", purified=adaptive, **more))
    return rows


def summary_of(*cells: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(cells), schema=schema.SUMMARY)


def samples_of(summary: pa.Table) -> pa.Table:
    """Six images of each cell: four at random, two of the worst."""
    rng = np.random.default_rng(0)
    rows = []
    for key in summary["cell"].to_pylist():
        for number in range(6):
            clean = rng.random(16 * 12, dtype=np.float32)
            change = 0.25 * np.sign(rng.standard_normal(16 * 12, dtype=np.float32))
            adversarial = np.clip(clean + change, 0, 1).astype(np.float32)
            rows.append(
                {
                    "cell": key,
                    "id": f"image-{number}",
                    "kind": "random" if number < 4 else "worst",
                    "label": number,
                    "pred_clean": number,
                    "pred_adversarial": 9,
                    "pred_purified": number if number < 4 else 8,
                    "shape": [16, 12, 1],
                    "clean": clean,
                    "adversarial": adversarial,
                    "purified": clean * 0.9,
                }
            )
    return pa.Table.from_pylist(rows, schema=schema.SAMPLES)


def write_training(folder: Path, metrics: pa.Table, run: dict[str, Any]) -> None:
    """What a training writes, as far as its page is made of it: five epochs, of which the fourth is the best."""
    storage.write_table(str(folder / "metrics.parquet"), metrics)
    rows = [("cat", 900, 100), (HOSTILE, 450, 50)]
    classes = [dict(zip(schema.CLASSES.names, (label, *row), strict=True)) for label, row in enumerate(rows)]
    storage.write_table(str(folder / "classes.parquet"), pa.Table.from_pylist(classes, schema.CLASSES))
    scores = [{"accuracy": accuracy} for accuracy in (0.31, 0.72, 0.91, 0.95, 0.94)]
    told = {"epoch": 5, "images": 5000, "validation": scores, "best": 4, "criterion": "accuracy", "parameters": 12345}
    storage.write_json(str(folder / "model/metrics.json"), told)
    identity = {"data": "digits", "model": "a_net", "epochs": 8, "attacks": ["fgsm"], "dataset": {"name": "digits"}}
    storage.write_json(str(folder / "run.json"), {**run, "identity": identity})
