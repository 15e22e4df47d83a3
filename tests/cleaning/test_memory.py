"""What a unit takes in memory does not grow with the tar that it is."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np

from raypurify.images import Picture, encode

CLEAN = """
import resource, sys
from raypurify.cleaning import accounts
from raypurify.cleaning.entries import Entry
from raypurify.cleaning.plan import UnitContent
from raypurify.cleaning.cleaner import Cleaner, Cleaning
from raypurify.cleaning.cleaner import CleaningConfig

source, output, shards = sys.argv[1:]
config = CleaningConfig(input=source, purifier="identity", format="bmp", shards=shards)
cleaner = Cleaner(Cleaning.load(config, output), "cpu", batch=8, threads=1)
entry = Entry(key="a.tar", url=source, kind="tar", size=-1, version="", rows=None, output="a.tar")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cleaned = cleaner(UnitContent(name="0", entries=(entry,)))
print(len(cleaned.rows), len(cleaned.rejects))
accounts.publish(output, "0", cleaned)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def put(path: Path, members: list[bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for index, data in enumerate(members):
            info = tarfile.TarInfo(f"{index:06d}.bmp")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def peak(source: Path, output: Path, shards: str) -> tuple[str, int]:
    """Images and rejects, and MiB that the process grew by."""
    done = subprocess.run(
        [sys.executable, "-c", CLEAN, str(source), str(output), shards],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=output.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    counts, grown = done.stdout.splitlines()
    return counts, int(grown)


def test_images(tmp_path: Path):
    """A shard of 45 MiB takes less than 300, most of them for what is decoded and purified at a time."""
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    put(tmp_path / "a.tar", [encode(Picture(pixels=np.roll(pixels, index)), "bmp")[0] for index in range(60)])
    counts, grown = peak(tmp_path / "a.tar", tmp_path / "out", "parquet")
    assert counts == "60 0"
    assert grown < 300
