"""The pool's actors share the work, do what is missing, and say what they did."""

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path

from raypurify import runs, storage
from raypurify.data import Rows, open_source
from raypurify.evaluation.units import Unit, rows_of_unit, units_of
from raypurify.jobs.attempt import attempt_at
from raypurify.jobs.resources import ActorPool
from raypurify.jobs.work import Made, Make, undone
from raypurify.runs import lease


@dataclasses.dataclass(frozen=True)
class Shared:
    """Work whose actors wait for each other, and note their processes, one file for each of two marks."""

    output: str

    @property
    def marks(self) -> dict[str, str]:
        return {mark: f"{self.output}/{mark}" for mark in ("first", "last")}

    @property
    def stages(self) -> dict[str, ActorPool]:
        return {}

    def start(self, pool: ActorPool, held: lease.Watch) -> Make:
        return self.make

    def make(self, unit: Unit, pieces: list[Rows], marks: AbstractSet[str]) -> Made:
        met = Path(self.output, "met")
        met.mkdir(exist_ok=True)
        Path(met, str(os.getpid())).touch()
        end = time.monotonic() + 120
        while len(list(met.iterdir())) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        assert sum(len(piece.ids) for piece in pieces) == unit.images
        return Made(
            images=unit.images, rejected=1, publish=partial(self.publish, unit, marks), counts={"written": len(marks)}
        )

    def publish(self, unit: Unit, marks: AbstractSet[str]) -> None:
        for mark in marks:
            storage.write_bytes(f"{self.output}/{mark}/{unit.name}.parquet", str(os.getpid()).encode())


def test_actors_share_a_small_dataset_and_do_what_is_missing(local_ray: None, tmp_path: Path) -> None:
    source = open_source("digits", split="test", limit=100)
    work = Shared(str(tmp_path))
    units = units_of(source, rows_of_unit(work.output, source.rows))
    with (
        runs.hold(work.output, {}) as run,
        attempt_at(run, ActorPool(actors=2), work, shared_filesystem=False) as attempt,
    ):
        attempt.stream(undone(work, units), "working")
        assert undone(work, units) == []
        by_process = Counter(path.read_text() for path in (tmp_path / "first").iterdir())
        assert len(by_process) == 2
        assert by_process.total() == 7
        times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.parquet")}
        lost = tmp_path / "last" / f"{units[3].name}.parquet"
        lost.unlink()
        assert undone(work, units) == [(units[3], {"last"})]
        attempt.stream(undone(work, units), "working")
        assert {path for path, time in times.items() if path.stat().st_mtime_ns != time} == {lost}
    (entry,) = storage.read_json(f"{work.output}/run.json")["attempts"]
    counts = entry["counts"]
    assert {name: counts[name] for name in ("in", "out", "rejected", "written")} == dict(
        zip(("in", "out", "rejected", "written"), (116, 108, 8, 15), strict=True)
    )
    assert counts["timeline"][0][1] == 0
    assert [images for _, images in counts["timeline"][1:]][-1] == 116
    assert len(counts["timeline"]) == 9
