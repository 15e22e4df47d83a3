"""Units: fixed runs of a dataset's rows."""

import dataclasses
import os
import pickle
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypurify import storage
from raypurify.data import Rows, open_source, read_rows
from raypurify.distributed.units import ActorPool, Unit, rows_of_unit, stream, units_of


def test_a_unit_carries_no_other_units_picked_rows(tmp_path: Path) -> None:
    images = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((60_000, 1, 1, 1), np.uint8))
    pq.write_table(pa.table({"image": images, "label": np.arange(60_000) % 2}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path), split="test")
    units = units_of(source, rows_of_unit(str(tmp_path / "run"), source.rows))
    assert sum(unit.rows for unit in units) == source.rows > 9_000
    assert max(len(pickle.dumps(unit)) for unit in units) < 10_000
    (whole,) = (read_rows(shard, 0, shard.rows).ids for shard in source.shards)
    assert [name for unit in units for rows in unit.read() for name in rows.ids] == whole


@pytest.mark.parametrize(
    ("rows", "coupled", "size"),
    [
        (0, 0, 16),
        (60, 0, 16),
        (256, 0, 16),
        (297, 0, 19),
        (7_999, 0, 500),
        (10_000_000, 0, 500),
        (297, 250, 250),
        (8_000, 250, 500),
        (8_000, 1_000, 500),
    ],
)
def test_units_shrink_with_the_dataset(rows: int, coupled: int, size: int, tmp_path: Path) -> None:
    output = str(tmp_path)
    assert rows_of_unit(output, rows, coupled=coupled) == size
    storage.write_json(f"{output}/run.json", {"identity": {"unit": 77}})
    assert rows_of_unit(output, rows, coupled=coupled) == 77
    assert rows_of_unit(output, rows, coupled=coupled, overwrite=True) == size


@dataclasses.dataclass(frozen=True)
class Slow:
    """Work whose actors note their processes."""

    output: str

    def begin_anew(self, unit: Unit) -> Unit:
        return unit

    def start(self, pool: ActorPool) -> Callable[[Unit, Sequence[Rows]], None]:
        return self.note

    def note(self, unit: Unit, pieces: Sequence[Rows]) -> None:
        time.sleep(0.2)
        storage.write_bytes(f"{self.output}/{unit.name}", str(os.getpid()).encode())


def test_actors_share_a_small_dataset(local_ray: None, tmp_path: Path) -> None:
    source = open_source("digits", split="test", limit=100)
    units = units_of(source, rows_of_unit(str(tmp_path), source.rows))
    counts = stream(Slow(str(tmp_path)), units, ActorPool(actors=2), "working")
    assert counts["in"] == 100
    by_process = Counter(path.read_text() for path in tmp_path.iterdir())
    assert len(by_process) == 2
    assert by_process.total() == 7
    assert min(by_process.values()) >= 2
