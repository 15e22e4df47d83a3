"""Large photographs through the purifier that comes with the project: in bounded memory, and without seams."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raypurify import models
from raypurify.cleaning.tiles import PixelPurifier, Tiling
from raypurify.data import View, open_source, read_rows

PHOTOS = str(Path(os.environ.get("RAYPURIFY_DATA", "")) / "photos")
NEEDS_PHOTOS = pytest.mark.skipif(
    "RAYPURIFY_DATA" not in os.environ or not Path(PHOTOS).is_dir(),
    reason="RAYPURIFY_DATA is unset, or has no photos: there are no real photographs here",
)
NETWORK = "weights/photos/cru_net"

CLEAN = """
import re, sys
import raypurify

raypurify.clean(input=sys.argv[1], output=sys.argv[2], engine="local", actors=1, max_pixels=1 << 27)
# The high-water mark of this process: that of getrusage starts with the parent's.
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 2**20)
"""


def mosaic(rows: int, columns: int) -> np.ndarray:
    """(256 rows, 256 columns, 3) uint8: photographs side by side, again and again."""
    source = open_source(PHOTOS, split="test", view=View(resize=256, crop=256))
    images = np.stack([*read_rows(source.shards[0], 0, 48).images])
    picked = images[np.arange(rows * columns) % len(images)].reshape(rows, columns, 256, 256, 3)
    return picked.transpose(0, 2, 1, 3, 4).reshape(256 * rows, 256 * columns, 3)


@NEEDS_PHOTOS
def test_no_seam_is_seen_between_tiles() -> None:
    network = models.load("purifier", NETWORK).build()
    image = mosaic(3, 4)[None]
    whole, tiled = (
        PixelPurifier(network, tiling=Tiling(tile=384, whole=most))(image, [0]).astype(int)
        for most in (1 << 20, 1 << 16)
    )
    assert np.abs(whole - image).max() > 8
    assert np.abs(whole - tiled).max() <= 1


@pytest.mark.slow
@NEEDS_PHOTOS
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("rows", "columns", "most"), [(12, 16, 1.5), (34, 46, 3.0)], ids=["12 MP", "100 MP"])
def test_large_photographs_are_cleaned_in_bounded_memory(rows: int, columns: int, most: float, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(mosaic(rows, columns)).save(buffer, "JPEG", quality=90)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/large.jpg").write_bytes(buffer.getvalue())
    words = [sys.executable, "-c", CLEAN, str(tmp_path / "in"), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "2"}
    run = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    gibibytes = float(run.stdout.splitlines()[-1])
    print(f"{gibibytes:.2f} GiB")
    Image.MAX_IMAGE_PIXELS = None
    assert Image.open(tmp_path / "out/images/large.png").size == (256 * columns, 256 * rows)
    assert gibibytes < most
