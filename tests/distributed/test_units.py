"""Units: fixed runs of a dataset's rows."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypurify.data import open_source, read_rows
from raypurify.distributed.units import units_of


def test_a_unit_carries_no_other_units_picked_rows(tmp_path: Path) -> None:
    images = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((60_000, 1, 1, 1), np.uint8))
    pq.write_table(pa.table({"image": images, "label": np.arange(60_000) % 2}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path), split="test")
    units = units_of(source)
    assert sum(unit.rows for unit in units) == source.rows > 9_000
    assert max(len(pickle.dumps(unit)) for unit in units) < 10_000
    (whole,) = (read_rows(shard, 0, shard.rows).ids for shard in source.shards)
    assert [name for unit in units for rows in unit.read() for name in rows.ids] == whole
