"""Files of the input that may not be read: one reject each, whatever they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from one_process import clean, rows_of
from permissions import unreadable

from raypurify.cleaning.cleaner import CleaningConfig
from raypurify.data import DataError, files
from raypurify.images import encode_png

FORBIDDEN = ("a.png", "rows.parquet", "b.tar", "c.tar.gz")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files that may be read once the block of ``unreadable`` ends, and an image that always may."""
    folder = tmp_path / "in"
    folder.mkdir()
    image = encode_png(np.zeros((8, 8, 3), np.uint8))
    pq.write_table(pa.table({"image": [image] * 3}), folder / "rows.parquet")
    for name in ("a.png", "b.tar", "c.tar.gz", "good.png"):
        (folder / name).write_bytes(image)
    return folder


def test_a_file_that_may_not_be_read_is_one_reject(folder: Path, tmp_path: Path):
    output = str(tmp_path / "out")
    with unreadable(*(folder / name for name in FORBIDDEN)):
        totals = clean(CleaningConfig(input=str(folder), purifier="identity"), output)
    assert totals is not None
    assert (totals.cleaned, totals.rejected) == (1, 4)
    reasons = {row["id"].partition("#")[0]: row["reason"] for row in rows_of(output, "rejects")}
    assert set(reasons) == set(FORBIDDEN)
    assert all("permission denied" in reason.lower() for reason in reasons.values()), reasons


@pytest.mark.parametrize("name", FORBIDDEN)
def test_an_input_of_one_file_that_may_not_be_read_is_a_reject(folder: Path, tmp_path: Path, name: str):
    with unreadable(folder / name):
        totals = clean(CleaningConfig(input=str(folder / name), purifier="identity"), str(tmp_path / "out"))
    assert totals is not None
    assert (totals.cleaned, totals.rejected) == (0, 1)


def test_a_folder_that_may_not_be_entered_is_told_by_its_own_name(folder: Path, tmp_path: Path):
    below = folder / "cats" / "private"
    below.mkdir(parents=True)
    with unreadable(below), pytest.raises(DataError, match=r"in/cats/private: permission denied"):
        clean(CleaningConfig(input=str(folder), purifier="identity"), str(tmp_path / "out"))


def test_a_lack_of_memory_says_nothing_of_a_file() -> None:
    assert files.is_passing(MemoryError(), "a.png")
    assert not files.is_passing(FileNotFoundError(), "a.png")
