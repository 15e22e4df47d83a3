"""Bulk cleaning on a real local Ray, from disk and from a real S3 server."""

import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from pictures import accounts, encoded, pixels, put
from pictures import corpus as corpus

from raypurify import storage
from raypurify.cleaning import plan
from raypurify.cleaning.cleaner import Cleaning, CleaningConfig
from raypurify.distributed.units import UnitActor
from raypurify.distributed.units import _blocks as blocks_of_unit
from raypurify.images import decode
from raypurify.jobs.clean import CleaningWork, clean
from raypurify.jobs.resources import ActorPool
from raypurify.runs import lease

POOL = ActorPool(actors=1, batch=8)
pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_folder_is_mirrored(place: str, corpus: dict[str, bytes], tmp_path: Path, s3: str) -> None:
    base = str(tmp_path) if place == "local" else storage.join(s3, "clean")
    source, output = put(storage.join(base, "in"), corpus), storage.join(base, "out")
    totals = clean(CleaningConfig(input=source, purifier="threshold"), POOL, output)
    assert (totals.cleaned, totals.rejected) == (43, 1)
    rows = {row["id"]: row for row in accounts(output, "manifest")}
    assert set(rows) == set(corpus) - {"damaged.jpg", "notes.txt"}
    assert [row["id"] for row in accounts(output, "rejects")] == ["damaged.jpg"]
    assert rows["cats/000.png"]["output"].endswith("/images/cats/000.png")
    assert {row["output"].rpartition("/")[2] for row in rows.values()} >= {"same.png.png", "same.bmp.png"}
    for key, row in rows.items():
        before, after = decode(corpus[key]), pixels(row["output"])
        if key != "clear.png":  # decode() lays transparent pixels on white
            assert np.array_equal(after, np.where(before > 127, 255, 0)), key
        assert (row["height"], row["width"]) == before.shape[:2]
    assert storage.is_success(output)
    assert storage.exists(storage.join(output, "report.html"))
    assert not storage.exists(storage.join(output, "_LEASE"))


def test_a_straggler_writes_and_removes_nothing(tmp_path: Path) -> None:
    source, output = tmp_path / "in", str(tmp_path / "out")
    source.mkdir()
    png = encoded(0, 20, 30)
    for name in ("a.png", "b.png"):
        (source / name).write_bytes(png)
    for name, member in (("c.tar", "a.png"), ("d.tar", "broken.png")):
        with tarfile.open(source / name, "w") as tar:
            tar.add(source / "a.png", member)
    pq.write_table(pa.table({"image": [png, png]}), source / "e.parquet")
    clean(CleaningConfig(input=str(source), purifier="identity"), POOL, output)
    before = {url: storage.read_bytes(url) for url in storage.list_files(output)}
    assert sum("/images/" in url for url in before) == 5
    # Of the dead attempt's purifier, its outputs would differ, and those of the damaged ones would go.
    (source / "b.png").write_bytes(png[:-50] + bytes(50))
    (source / "d.tar").write_bytes(bytes((source / "d.tar").stat().st_size))
    work = Cleaning.load(CleaningConfig(input=str(source), purifier="threshold"), output)
    straggler = UnitActor(ray.put((CleaningWork(cleaning=work), "dead", POOL)))
    with lease.hold(output, "living"):
        for unit in plan.units(output):
            (block,) = blocks_of_unit(unit, {"manifest"}, apart=False)()
            with pytest.raises(lease.LeaseLostError):
                straggler(block)
    written = {url: storage.read_bytes(url) for url in storage.list_files(output) if "/starts/" not in url}
    assert written == before
