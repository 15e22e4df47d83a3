"""Tables as an evaluation writes them, small and made up."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raypurify import schema


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
        "victim": f"{purifier}+{classifier}" if setting == "adaptive" else classifier,
        "classifier": classifier,
        "purifier": purifier,
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
        "steps_mean": 40.0,
        "queries_mean": 80.0,
    }
    return row | more


def summary_of(*cells: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(cells), schema=schema.SUMMARY)


@pytest.fixture
def summary() -> pa.Table:
    return summary_of(
        cell(attack="fgsm", purified=0.9512, adversarial=0.0812, params={"epsilon": 0.3}),
        cell(attack="fgsm", purifier="median_filter", purified=0.4123, adversarial=0.0812, params={"epsilon": 0.3}),
        cell(purified=0.9731),
        cell(purifier="identity", purified=0.0123),
        cell(setting="adaptive", purified=0.0417, adversarial=0.6),
        cell(attack="deepfool", eps=None, adversarial=0.0, purified=0.9812, l2_median=float("inf"), ssim_purified=None),
        cell(setting="black-box", purifier="cru_net,checkpoint=weights/cru_net-b_net", purified=0.9345),
    )


@pytest.fixture
def samples(summary: pa.Table) -> pa.Table:
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


@pytest.fixture
def metrics() -> pa.Table:
    step = np.arange(2500)
    noise = np.random.default_rng(0).normal(0, 0.2, len(step))
    columns = {
        "step": step,
        "epoch": step // 500,
        "loss": 0.2 * np.exp(-step / 600 + noise) + 0.004,
        "rate": np.full(len(step), 1e-3),
        "images_per_second": np.full(len(step), 466.0),
    }
    return pa.table(columns, schema=schema.METRICS)


@pytest.fixture
def rejects() -> pa.Table:
    rows = [
        {"id": f"cats/{n}.png", "url": f"s3://bucket/cats/{n}.png", "stage": "decode", "reason": "truncated"}
        for n in range(12)
    ]
    return pa.Table.from_pylist(rows, schema=schema.REJECTS)


@pytest.fixture
def run() -> dict[str, Any]:
    return {
        "identity": {"dataset": {"name": "digits", "url": "embedded"}, "seed": 7, "attacks": ["fgsm", "pgd"]},
        "attempts": [
            {
                "id": "a1",
                "started": "2024-05-01T10:00:00Z",
                "ended": "2024-05-01T10:03:20Z",
                "versions": {"python": "3.11.2", "torch": "2.5.1", "ray": "2.40.0"},
                "hardware": {"nodes": 1, "cpu": {"model": "Some CPU", "cores": 2}},
                "counts": {"in": 1800, "out": 1788, "rejected": 12, "retried": 0},
            }
        ],
    }
