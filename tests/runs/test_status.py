"""What a run's files tell of it: on disk and in a bucket, finished, running, interrupted."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raypurify import runs, storage
from raypurify.cleaning import planner
from raypurify.cleaning.inputs import listed
from raypurify.runs import lease, schema
from raypurify.runs.status import Part, status_of
from raypurify.storage import checkpoints

EVALUATION = {"data": "digits", "split": "test", "unit": 20, "dataset": "0"}
ATTACK = {"input": "digits", "attack": "fgsm", "unit": 20}
TRAINING = {"data": "digits", "model": "a_net", "epochs": 6}
CLEANING = {"input": "here", "purifier": "identity", "shards": "mirror"}


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for a run."""
    return str(tmp_path / "run") if request.param == "local" else f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"


def attempt(output: str, identity: Mapping[str, Any], *, images: int | None = None) -> Generator[runs.Run, None, None]:
    """An attempt at a run, which goes on until the generator is closed."""
    with runs.hold(output, identity) as run:
        if images is not None:
            run.counts["images"] = images
        with run.attempt({}, {}):
            yield run


def mark(output: str, *names: str) -> None:
    """Write that units are done."""
    for name in names:
        storage.write_table(storage.join(output, f"{name}.parquet"), pa.table({"id": [name]}))


def test_an_evaluation_while_it_runs_and_after(output: str) -> None:
    at_work = attempt(output, EVALUATION, images=30)
    run = next(at_work)
    storage.write_table(storage.join(output, "cells.parquet"), pa.table({"cell": ["one", "two"]}))
    mark(output, "scores/cell=one/000000", "scores/cell=one/000001", "scores/cell=two/000000", "scores/cell=old/000000")
    reasons = ["truncated at 12", "truncated at 40", "no image"]
    rows = [{"id": str(row), "url": "u", "stage": "decode", "reason": reason} for row, reason in enumerate(reasons)]
    storage.write_table(storage.join(output, "rejects/0.parquet"), pa.Table.from_pylist(rows, schema.REJECTS))
    status = status_of(output)
    assert (status.job, status.state) == ("evaluation", "running")
    assert status.extent.parts == (Part(name="cells", done=1, total=2), Part(name="units", done=3, total=4))
    assert status.holder is not None
    assert status.holder.attempt == run.id
    assert status.good_for is not None
    assert 0 < status.good_for <= lease.GOOD_FOR + 1
    assert dict(status.rejects) == {"truncated at N": 2, "no image": 1}
    at_work.close()
    assert status_of(output).state == "interrupted"
    mark(output, "scores/cell=two/000001")
    storage.mark_success(output)
    status = status_of(output)
    assert (status.state, status.holder) == ("finished", None)
    assert [part.done for part in status.extent.parts] == [2, 4]


def test_the_time_left_follows_from_the_times_of_what_is_done(tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    at_work = attempt(output, ATTACK, images=95)
    next(at_work)
    mark(output, "images/test-000000", "images/test-000001", "images/test-000002")
    for number, ago in enumerate((20, 10, 0)):
        os.utime(tmp_path / f"run/images/test-00000{number}.parquet", (time.time() + 60 - ago,) * 2)
    status = status_of(output)
    assert status.extent.parts[0] == Part(name="units", done=3, total=5)
    assert status.extent.parts[1] == Part(name="images", done=57, total=95, is_exact=False)
    assert status.extent.seconds_left == pytest.approx(20, rel=0.01)
    at_work.close()


def test_a_units_marks_in_several_cells_are_one_moment(tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    at_work = attempt(output, EVALUATION, images=60)
    next(at_work)
    storage.write_table(storage.join(output, "cells.parquet"), pa.table({"cell": ["one", "two"]}))
    for unit, later in (("000000", 30), ("000001", 40)):
        for cell in ("one", "two"):
            mark(output, f"scores/cell={cell}/{unit}")
            os.utime(tmp_path / f"run/scores/cell={cell}/{unit}.parquet", (time.time() + later,) * 2)
        if unit == "000000":
            assert status_of(output).extent.seconds_left is None
    assert status_of(output).extent.seconds_left == pytest.approx(10, rel=0.01)
    at_work.close()


def test_of_an_earlier_attempt_no_rate_follows(tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    at_work = attempt(output, ATTACK, images=95)
    next(at_work)
    mark(output, "images/test-000000", "images/test-000001")
    for number in range(2):
        os.utime(tmp_path / f"run/images/test-00000{number}.parquet", (time.time() - 99 - number,) * 2)
    assert status_of(output).extent.seconds_left is None
    at_work.close()


def test_a_training(output: str) -> None:
    at_work = attempt(output, TRAINING)
    next(at_work)
    assert status_of(output).extent.parts == (Part(name="epochs", done=0, total=6),)
    for epoch in (1, 2):
        folder = storage.join(output, "checkpoints", f"checkpoint_2026-01-0{epoch}")
        checkpoints.save(storage.join(folder, "model"), {}, {}, {"epoch": epoch, "images": epoch * 100})
        speeds = [{"step": 1, "epoch": epoch, "loss": 0.0, "rate": 0.0, "images_per_second": 10.0 * epoch}]
        storage.write_table(storage.join(folder, "metrics.parquet"), pa.Table.from_pylist(speeds, schema.STEPS))
        storage.write_table(storage.join(folder, "rejects.parquet"), pa.table({"reason": ["no image"] * epoch}))
    status = status_of(output)
    assert (status.job, status.state) == ("training", "running")
    assert status.extent.parts == (Part(name="epochs", done=2, total=6), Part(name="images", done=200, total=600))
    assert status.extent.seconds_left == pytest.approx(400 / 20)
    assert dict(status.rejects) == {"no image": 2}
    at_work.close()


def test_a_cleaning(tmp_path: Path) -> None:
    output, images = str(tmp_path / "run"), tmp_path / "images"
    images.mkdir()
    for number in range(3):
        (images / f"{number}.png").write_bytes(b"?")
    at_work = attempt(output, CLEANING)
    next(at_work)
    assert status_of(output).extent.parts == (Part(name="units", done=0, total=None),)
    planner.freeze(output, listed(str(images), output=output), extension=".png", sizes=planner.Sizes(unit_entries=1))
    mark(output, "manifest/000000")
    status = status_of(output)
    assert (status.job, status.state) == ("cleaning", "running")
    assert status.extent.parts[0] == Part(name="units", done=1, total=3)
    assert status.extent.parts[1] == Part(name="images", done=1, total=3, is_exact=False)
    at_work.close()


def test_a_lease_that_has_run_out_holds_nothing_and_nothing_is_written(tmp_path: Path) -> None:
    output, held = str(tmp_path / "run"), tmp_path / "run/_LEASE"
    at_work = attempt(output, ATTACK, images=20)
    next(at_work)
    left = held.read_bytes()
    at_work.close()
    held.write_bytes(left.replace(os.uname().nodename.encode(), b"elsewhere"))
    assert status_of(output).state == "running"
    os.utime(held, (time.time() - 100,) * 2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    status = status_of(output)
    assert status.state == "interrupted"
    assert status.holder is not None
    assert status.good_for is not None
    assert status.good_for < 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_what_is_no_run_is_refused_with_the_runs_below(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere holds no run: there is no run\.json"):
        status_of(str(tmp_path / "nowhere"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file, and holds no run"):
        status_of(str(tmp_path / "file"))
    with (
        lease.hold(str(tmp_path / "begun")) as held,
        pytest.raises(ValueError, match=rf"no run\.json in it yet; attempt {held.attempt} on host .* has begun"),
    ):
        status_of(str(tmp_path / "begun"))
    at_work = attempt(str(tmp_path / "demo/a_net"), TRAINING)
    next(at_work)
    with pytest.raises(ValueError, match="its folders a_net hold some"):
        status_of(str(tmp_path / "demo"))
    at_work.close()
