"""Images in files of several formats and sizes, and what a cleaning accounts for."""

import io

import numpy as np
import pytest
from PIL import Image

from raypurify import storage
from raypurify.images import decode


def encoded(seed: int, height: int, width: int, format: str = "PNG", mode: str = "RGB") -> bytes:
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels, mode).save(out, format)
    return out.getvalue()


@pytest.fixture(scope="session")
def corpus() -> dict[str, bytes]:
    """Files of several formats and sizes by key, one of them damaged, and one that is no image."""
    files = {}
    for index in range(40):
        extension, format = [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("bmp", "BMP"), ("tif", "TIFF")][
            index % 5
        ]
        height, width = (20, 30) if index % 4 else (1 + index, 7)
        mode = "L" if index % 7 == 0 and format != "WEBP" else "RGB"
        files[f"{['cats', 'dogs/old'][index % 2]}/{index:03d}.{extension}"] = encoded(
            index, height, width, format, mode
        )
    files["same.png"] = encoded(100, 9, 9)
    files["same.bmp"] = encoded(101, 9, 9, "BMP")
    files["clear.png"] = encoded(102, 9, 9, mode="RGBA")
    files["damaged.jpg"] = files["cats/000.png"][:50]
    files["notes.txt"] = b"not an image"
    return files


def put(root: str, files: dict[str, bytes]) -> str:
    for key, data in files.items():
        storage.write_bytes(storage.join(root, key), data)
    return root


def accounts(output: str, part: str) -> list[dict]:  # type: ignore[type-arg]
    return [
        row
        for url in storage.list_files(storage.join(output, part), ".parquet")
        for row in storage.read_table(url).to_pylist()
    ]


def pixels(url: str) -> np.ndarray:
    return decode(storage.read_bytes(url))
