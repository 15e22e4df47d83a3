"""Inputs that change between commands, and commands that are killed: at the end all is as after a fresh cleaning."""

from __future__ import annotations

import io
import os
import random
import tarfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from one_process import clean, rows_of

from raypurify import storage
from raypurify.cleaning.cleaner import CleaningConfig
from raypurify.cleaning.planner import Sizes
from raypurify.images import encode_png

SIZES = Sizes(unit_entries=3, unit_bytes=1 << 14, part_rows=4)
KEYS = [*(f"{name}.png" for name in "abcdefgh"), "a.bmp", "a/b.png", "r.parquet", "s/r.parquet", "t.tar", "s/t.tar"]


class Folder:
    """An input whose files come, change, are damaged and mended, and go."""

    def __init__(self, root: Path, generator: random.Random) -> None:
        self.root, self.random, self.writes = root, generator, 0

    def image(self) -> bytes:
        height = self.random.randint(4, 6)
        pixels = np.random.default_rng(self.random.randrange(1 << 30)).integers(0, 256, (height, 5, 3), dtype=np.uint8)
        return b"damaged" if self.random.random() < 0.1 else encode_png(pixels)

    def write(self, key: str) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        images = [self.image() for _ in range(self.random.randint(1, 8))]
        if self.random.random() < 0.1:
            path.write_bytes(b"no such format")
        elif key.endswith(".parquet"):
            table = pa.table({"n": range(len(images)), "image": images})
            pq.write_table(table, path, row_group_size=self.random.choice([2, 100]))
        elif key.endswith(".tar"):
            with tarfile.open(path, "w") as tar:
                for name, data in [("notes.txt", b"text"), *((f"{n}.png", data) for n, data in enumerate(images))]:
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        else:
            path.write_bytes(images[0])
        self.writes += 1
        os.utime(path, (self.writes, self.writes))

    def change(self) -> None:
        """Some files are written, or removed."""
        for key in self.random.sample(KEYS, self.random.randint(1, 5)):
            if self.random.random() < 0.25:
                (self.root / key).unlink(missing_ok=True)
            else:
                self.write(key)
        if not any((self.root / key).exists() for key in KEYS):
            self.write(KEYS[0])


def state(output: str, root: Path) -> dict[str, Any]:
    """What became of the inputs that are still there, by id: the cleaned image, what is said of it, or the reject."""
    found: dict[str, Any] = {}
    rows = rows_of(output, "manifest")
    contents = {url: storage.read_bytes(url) for url in {row["output"] for row in rows}}
    others = set(storage.list_files(storage.join(output, "images"))) - set(contents)
    assert all(names_in(url) == ["notes.txt"] for url in others)  # a tar whose images are all rejects
    for row in rows:
        output_of, position = row.pop("output"), row["row"]
        found[row["id"]] = [row, cut(output_of, contents[output_of], position)]
    for row in rows_of(output, "rejects"):
        assert row["id"] not in found
        found[row["id"]] = row
    return {id: what for id, what in found.items() if (root / id.partition("#")[0]).exists()}


def names_in(tar: str) -> list[str]:
    with tarfile.open(tar) as opened:
        return opened.getnames()


def cut(url: str, data: bytes, position: int | None) -> Any:
    """The image at a position of a tar or a Parquet file, with what belongs to it."""
    if url.endswith(".parquet"):
        return pq.read_table(io.BytesIO(data)).slice(position, 1).to_pylist()
    if url.endswith(".tar"):
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
        return members[cast(int, position)], members[0]
    return data


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 200, 10))
def test_random_sequences(first: int, tmp_path: Path):
    for seed in range(first, first + 10):
        check_sequence(seed, tmp_path / str(seed))


def test_a_random_sequence(tmp_path: Path):
    check_sequence(1000, tmp_path)


def check_sequence(seed: int, folder: Path) -> None:
    generator = random.Random(seed)
    source, output = Folder(folder / "in", generator), str(folder / "out")
    config = CleaningConfig(input=str(source.root), purifier="identity")
    source.change()
    for _ in range(generator.randint(2, 5)):
        most = generator.choice([None, 0, 1, 2, 5])
        clean(config, output, sizes=SIZES, update=generator.random() < 0.6, most=most)
        if generator.random() < 0.8:
            source.change()
    assert clean(config, output, sizes=SIZES, update=True) is not None
    assert clean(config, str(folder / "fresh"), sizes=SIZES) is not None
    assert state(output, source.root) == state(str(folder / "fresh"), source.root), f"seed {seed}"
