"""Tables as an evaluation writes them, small and made up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from browser import BROWSER, Tab
from report_rows import cell, samples_of, summary_of

from raypurify.runs import schema


@pytest.fixture(scope="session")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    if BROWSER is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    tab = Tab(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


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
    return samples_of(summary)


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
    return pa.table(columns, schema=schema.STEPS)


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
                "started": "2024-05-01T10:00:00+00:00",
                "ended": "2024-05-01T10:03:20+00:00",
                "versions": {"python": "3.11.2", "torch": "2.5.1", "ray": "2.40.0"},
                "hardware": {"nodes": 1, "cpu": {"model": "Some CPU", "cores": 2}},
                "config": {"workers": 3},
                "counts": {"in": 1800, "out": 1788, "rejected": 12, "retries": 0},
            }
        ],
    }
