"""On a GPU the jobs find what they find on CPUs, by either engine."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import raypurify
from raypurify import storage
from raypurify.images import encode_png

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU on this machine"),
]
GPUS = 1
ENGINES = ("local", "ray")


def losses(output: Path) -> np.ndarray:
    return pq.read_table(output / "metrics.parquet")["loss"].to_numpy()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_training(engine: Any, local_ray: None, small_classifier: str, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"data": "digits", "classifier": small_classifier, "limit": 400, "epochs": 2, "batch": 64}
    flags |= {"attacks": ["fgsm,epsilon=0.2"], "precision": "float32", "validation": 64, "model": "cru_net,width=4"}
    raypurify.train("digits", engine="local", output=tmp_path / "cpu", cpus_per_worker=1, **flags)
    network = raypurify.train("digits", engine=engine, output=tmp_path / "gpu", use_gpu=GPUS > 0, **flags)
    assert next(network.parameters()).device.type == "cpu"
    expected, found = losses(tmp_path / "cpu"), losses(tmp_path / "gpu")
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
    np.testing.assert_allclose(found, expected, rtol=2e-2)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_evaluation(engine: Any, local_ray: None, tmp_path: Path) -> None:
    # Trained networks: the answers of random ones hang by a rounding.
    flags: dict[str, Any] = {"data": "digits", "limit": 100, "classifiers": ["weights/mnist/a_net"], "batch": 50}
    flags |= {"purifiers": ["weights/mnist/cru_net-a_net", "median_filter"], "actors": 1}
    flags |= {"settings": ["white-box", "adaptive"]}
    flags |= {"attacks": ["fgsm,epsilon=0.1", "pgd,epsilon=0.1,steps=5"]}
    expected = raypurify.evaluate(engine="local", output=tmp_path / "cpu", **flags)
    found = raypurify.evaluate(engine=engine, output=tmp_path / "gpu", gpus_per_actor=GPUS, **flags)
    assert found["cell"].equals(expected["cell"])
    for name in ("accuracy_clean", "accuracy_adversarial", "accuracy_purified", "ssim_purified"):
        np.testing.assert_allclose(found[name].to_numpy(), expected[name].to_numpy(), atol=0.02, err_msg=name)
    np.testing.assert_allclose(found["linf_max"].to_numpy(), expected["linf_max"].to_numpy(), atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cleaning(engine: Any, local_ray: None, small_purifier: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number, side in enumerate((28, 40, 300)):
        pixels = generator.integers(0, 256, (side, side, 1), dtype=np.uint8)
        storage.write_bytes(f"{tmp_path}/in/{number}.png", encode_png(pixels))
    flags: dict[str, Any] = {"input": f"{tmp_path}/in", "purifier": small_purifier, "actors": 1}
    raypurify.clean(engine="local", output=tmp_path / "cpu", **flags)
    raypurify.clean(engine=engine, output=tmp_path / "gpu", gpus_per_actor=GPUS, **flags)
    for number in range(3):
        name = f"images/{number}.png"
        found, expected = (np.asarray(Image.open(tmp_path / where / name), int) for where in ("gpu", "cpu"))
        assert np.abs(found - expected).max() <= 1
