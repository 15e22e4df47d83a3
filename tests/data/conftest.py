from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from servers import serving


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RAYPURIFY_CACHE", str(folder))
    return folder


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file, as the format's description has it."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def write_mnist() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    def write(folder: Path, *, rows: int = 7, split: str = "train", gz: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Write small IDX files, and return their images (N, 28, 28) and labels."""
        rng = np.random.default_rng(rows)
        images = rng.integers(0, 256, (rows, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, rows, dtype=np.uint8)
        prefix = {"train": "train", "test": "t10k"}[split]
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            data = idx_bytes(array)
            (folder / (name + ".gz" * gz)).write_bytes(gzip.compress(data) if gz else data)
        return images, labels

    return write


@pytest.fixture
def http_root(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL at which a real HTTP server serves it. The server lists folders, and knows no ranges."""
    folder = tmp_path / "served"
    folder.mkdir()
    with serving(folder) as port:
        yield folder, f"http://127.0.0.1:{port}"
