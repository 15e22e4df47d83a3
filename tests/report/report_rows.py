"""Rows of a summary, made up."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

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
