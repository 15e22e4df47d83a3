"""Units: fixed runs of a dataset's rows."""

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from raypurify import storage
from raypurify.data import open_source, read_rows
from raypurify.distributed.units import UnitActor
from raypurify.distributed.units import _blocks as blocks_of_unit
from raypurify.evaluation.generation import GenerationConfig, grid_of
from raypurify.evaluation.grid import EvaluationConfig, build_grid
from raypurify.evaluation.units import rows_of_unit, units_of
from raypurify.jobs.attack import GenerationWork
from raypurify.jobs.evaluate import Evaluation
from raypurify.jobs.resources import ActorPool
from raypurify.jobs.rows import RowWork, unit_size
from raypurify.runs import lease, schema


def test_a_unit_carries_no_other_units_picked_rows(tmp_path: Path) -> None:
    images = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((60_000, 1, 1, 1), np.uint8))
    pq.write_table(pa.table({"image": images, "label": np.arange(60_000) % 2}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path), split="test")
    units = units_of(source, rows_of_unit(str(tmp_path / "run"), source.rows))
    assert sum(unit.images for unit in units) == source.rows > 9_000
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


def test_on_gpus_units_hold_what_a_gpu_is_to_have_at_once(tmp_path: Path) -> None:
    output, source = str(tmp_path), open_source("digits", split="train")
    on_cpus, on_gpus = ActorPool(actors=2, batch=600), ActorPool(actors=2, gpus_per_actor=1, batch=600)

    def size(*pools: ActorPool, coupled: int = 0) -> int:
        stages = {str(number): pool for number, pool in enumerate(pools[1:])}
        return unit_size(output, source, pools[0], stages, coupled=coupled, overwrite=False)

    assert source.rows == 1500
    assert size(on_cpus) == 94
    assert size(on_gpus) == 375
    assert size(on_cpus, on_gpus) == 375
    assert size(dataclasses.replace(on_gpus, batch=200)) == 200
    assert size(dataclasses.replace(on_gpus, batch_pixels=100 * 28 * 28)) == 100
    assert size(dataclasses.replace(on_cpus, actors=8), on_gpus) == 94
    assert size(on_gpus, coupled=100) == 100
    assert rows_of_unit(output, 60_000, whole=600) == 600
    assert rows_of_unit(output, 60_000, whole=2) == 500


def test_units_cover_the_rows_in_order() -> None:
    pieces = [piece for unit in units_of(open_source("digits", split="train"), 400) for piece in unit.pieces]
    assert [(piece.start, piece.stop) for piece in pieces] == [(0, 400), (400, 800), (800, 1200), (1200, 1500)]


def test_units_are_fixed_runs_of_rows_across_shards() -> None:
    source = open_source("digits", split="train")
    halves = tuple(dataclasses.replace(source.shards[0], rows=n, first=f) for n, f in ((700, 0), (0, 700), (800, 700)))
    units = units_of(dataclasses.replace(source, shards=halves), 500)
    assert [unit.images for unit in units] == [500, 500, 500]
    assert [(piece.start, piece.stop) for piece in units[1].pieces] == [(500, 700), (0, 300)]
    assert [unit.name for unit in units] == ["000000", "000001", "000002"]


def evaluation(classifier: str, output: str) -> RowWork:
    config = EvaluationConfig(data="digits", classifiers=(classifier,), attacks=("none", "fgsm"))
    return Evaluation(grid=build_grid(config, "digits", 40), output=output)


def attack(classifier: str, output: str) -> RowWork:
    config = GenerationConfig(input="digits", attack="fgsm", classifier=classifier, png=True)
    return GenerationWork(config=config, grid=grid_of(config, "digits", 40, 16), output=output)


@pytest.mark.parametrize("job", [evaluation, attack])
@pytest.mark.parametrize("lost", ["before it began", "while it worked"])
def test_a_straggler_writes_and_removes_nothing(
    lost: str, job: Callable[[str, str], RowWork], local_ray: None, small_classifier: str, tmp_path: Path
) -> None:
    output, pool = str(tmp_path), ActorPool(actors=1, batch=16)
    work = job(small_classifier, output)
    units = units_of(open_source("digits", split="test", limit=40), 16)
    for mark, folder in work.marks.items():
        storage.write_bytes(f"{folder}/{units[0].name}.parquet", mark.encode())
    mended = dict.fromkeys(schema.REJECTS.names, "mended")
    storage.write_table(f"{output}/rejects/{units[0].name}.parquet", pa.Table.from_pylist([mended], schema.REJECTS))
    before = {url: storage.read_bytes(url) for url in storage.list_files(output)}
    straggler = UnitActor(ray.put((work, "dead", pool)))
    if lost == "while it worked":
        with lease.hold(output, "dead"):
            straggler.held = lease.Watch(output, "dead", seconds=1000)
            straggler.held.check()
    with lease.hold(output, "living"):
        for unit in units:
            (block,) = blocks_of_unit(unit, set(work.marks), apart=False)()
            with pytest.raises(lease.LeaseLostError):
                straggler(block)
    assert {url: storage.read_bytes(url) for url in storage.list_files(output)} == before
