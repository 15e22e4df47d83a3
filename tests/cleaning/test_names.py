"""Names that mean something to a shell, a URL or a store: cleaned, updated and overwritten as any other."""

from __future__ import annotations

import io
import tarfile
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from one_process import clean, rows_of

from raypurify import storage
from raypurify.cleaning.cleaner import CleaningConfig
from raypurify.images import encode_png

NAMES = ["ph*", "ph?to1", "photo[1]", "[!a]hoto1", "{photo1,b}", "50%25", "%2F", "a#b", "#", "a b", " a", "a\nb"]
"""Of images and folders; each may be taken for another name, or for several."""
NO_UTF8, WRITTEN = "caf\udce9", "caf\ufffdE9"
"""A name that is no UTF-8, and how tables have it."""
OTHERS = ["photo1", "photo2", "photo3", "a", "b", "50%", "ph"]


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    root = request.getfixturevalue("s3") if request.param == "s3" else "memory:///runs"
    return f"{root}/{uuid.uuid4().hex}"


def image(index: int) -> bytes:
    return encode_png(np.random.default_rng(index).integers(0, 255, (12, 12, 3), dtype=np.uint8))


def outputs(output: str) -> dict[str, bytes]:
    """What is in ``images/``, by the ids of the manifest."""
    rows = rows_of(output, "manifest")
    there = {row["id"]: storage.read_bytes(row["output"]) for row in rows}
    assert len(there) == len(rows) == len(storage.list_files(storage.join(output, "images")))
    return there


def test_names_are_cleaned_updated_and_overwritten(place: str):
    local = storage.is_local(place)
    names = [name for name in NAMES if local or "\n" not in name] + [NO_UTF8] * local
    keys = [f"{name}{end}" for name in names for end in (".png", "/x.png")]
    source, output, beside = (storage.join(place, name) for name in ("in [1]*", "out[1]*?#", "out1"))
    for index, key in enumerate([*keys, *(f"{name}.png" for name in OTHERS)]):
        storage.write_bytes(storage.join(source, key), image(index))
    storage.write_bytes(storage.join(beside, "images", "photo1.png"), b"another run's")
    config = CleaningConfig(input=source, purifier="identity")
    assert clean(config, output) is not None
    before = outputs(output)
    odd = {key.replace(NO_UTF8, WRITTEN) for key in keys}
    assert set(before) == odd | {f"{name}.png" for name in OTHERS}
    for key in keys:
        storage.write_bytes(storage.join(source, key), b"damaged")
    totals = clean(config, output, update=True)
    assert totals is not None
    assert totals.rejected == len(keys)
    assert outputs(output) == {key: data for key, data in before.items() if key not in odd}
    assert {row["id"] for row in rows_of(output, "rejects")} == odd
    for index, key in enumerate(keys):
        storage.write_bytes(storage.join(source, key), image(index))
    assert clean(config, output, update=True) is not None
    assert outputs(output) == before
    storage.write_bytes(storage.join(output, "images", "left.png"), b"of an earlier run")
    assert clean(config, output, overwrite=True) is not None
    assert outputs(output) == before
    assert storage.read_bytes(storage.join(beside, "images", "photo1.png")) == b"another run's"


def test_a_folder_whose_name_is_no_utf8(tmp_path: Path):
    source, output = (str(tmp_path / f"{name}-{NO_UTF8}") for name in ("in", "out"))
    storage.write_bytes(f"{source}/a.png", image(0))
    storage.write_bytes(f"{source}/b.png", b"damaged")
    config = CleaningConfig(input=source, purifier="identity")
    for overwrite in (False, False, True):
        totals = clean(config, output, overwrite=overwrite)
        assert totals is not None
        assert (totals.cleaned, totals.rejected) == (1, 1)
    [row] = rows_of(output, "manifest")
    assert row["source"] == f"{source}/a.png".replace(NO_UTF8, WRITTEN)
    assert storage.read_json(f"{output}/run.json")["identity"]["input"] == source
    single = clean(CleaningConfig(input=f"{source}/a.png", purifier="identity"), str(tmp_path / "single"))
    assert single is not None
    assert single.cleaned == 1


def test_a_link_in_a_tar_whose_target_is_no_utf8_is_a_reject(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, f"{NO_UTF8}.png"
        tar.addfile(link)
        member = tarfile.TarInfo("a.png")
        member.size = len(image(0))
        tar.addfile(member, io.BytesIO(image(0)))
    totals = clean(CleaningConfig(input=str(tmp_path / "a.tar"), purifier="identity"), str(tmp_path / "out"))
    assert totals is not None
    assert (totals.cleaned, totals.rejected) == (1, 1)
    [reject] = rows_of(str(tmp_path / "out"), "rejects")
    assert reject["id"] == "a.tar#link.png"
    assert "is a link to caf" in reject["reason"]


def test_files_that_are_named_as_members_and_rows(tmp_path: Path):
    source, output = tmp_path / "in", str(tmp_path / "out")
    files = ["a.tar#b.png", "a.tar\ufffd23b.png", "A.TAR#b.png", "rows.parquet#0", "x#y.png"]
    for index, key in enumerate(files):
        storage.write_bytes(str(source / key), image(index))
    write_tar(source / "a.tar", {"b.png": image(7), "b.tar#c.png": image(8)})
    write_tar(source / "a.tar#b.tar", {"c.png": image(9)})
    pq.write_table(pa.table({"image": [image(10)]}), source / "rows.parquet")
    names = [*files, "a.tar", "a.tar#b.tar", "rows.parquet"]
    (source / "list.txt").write_text("\n".join(names))
    config = CleaningConfig(input=str(source / "list.txt"), purifier="identity")
    totals = clean(config, output)
    assert totals is not None
    assert (totals.cleaned, totals.rejected) == (len(files) + 4, 0)
    ids = {row["id"] for row in rows_of(output, "manifest")}
    assert len(ids) == len(files) + 4
    assert ids >= {"a.tar#b.png", "a.tar\ufffd23b.png", "x#y.png", "rows.parquet#0"}
    (source / "a.tar#b.png").write_bytes(b"damaged")
    totals = clean(config, output, update=True)
    assert totals is not None
    assert (totals.cleaned, totals.rejected) == (len(files) + 3, 1)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
