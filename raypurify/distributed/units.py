"""Planned units through a pool of actors on Ray Data."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset
from ray.data.block import Block

from raypurify.distributed import cluster
from raypurify.distributed.blocks import as_it_is, blocks_of, read_task
from raypurify.jobs.engine import UnitRows
from raypurify.jobs.resources import ActorPool
from raypurify.jobs.work import StagedWork, StageWorker, Todo, Unit, UnitWorker, Work

UNIT_BYTES = 4 << 20
"""Bytes of a unit's block, about: what Ray Data is told."""


def rows(work: Work, todo: Sequence[Todo[Any]], pool: ActorPool, attempt: str) -> UnitRows:
    """See :meth:`raypurify.jobs.engine.Engine.do`: each unit goes to one actor of the pool."""
    apart = pool.reads == "apart"
    tasks = [read_task(_blocks(unit, marks, apart=apart), None, UNIT_BYTES) for unit, marks in todo]
    needs = [own.needs for own in (*work.stages.values(), pool)]
    read_cpus = cluster.read_cpus(pool.read_cpus, *needs) if apart else 0
    blocks = blocks_of(tasks, name="Units", read_cpus=read_cpus)
    for stage, own in work.stages.items():
        blocks = _through(blocks, StageActor, (ray.put(work), stage, own), own, len(todo))
    done = _through(blocks, UnitActor, (ray.put((work, attempt, pool)),), pool, len(todo))
    yield from done.iter_rows()


def _through(blocks: Dataset, actor: type, arguments: tuple[Any, ...], pool: ActorPool, units: int) -> Dataset:
    """Blocks, sent through a pool of actors one by one."""
    actors, most = min(pool.actors, units), min(pool.most, units)
    return blocks.map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=pool.cpus_per_actor,
        num_gpus=pool.gpus_per_actor,
        resources=pool.custom or None,
        compute=ray.data.ActorPoolStrategy(
            min_size=actors,
            max_size=most,
            initial_size=actors,
            # Of few units none waits behind another: the actor that is there first would take what the rest could do.
            max_tasks_in_flight_per_actor=1 if units <= 2 * most else 2,
        ),
    )


class UnitActor:
    """Does the units that blocks name or hold."""

    def __init__(self, reference: ray.ObjectRef[tuple[Work, str, ActorPool]]) -> None:
        """``reference``: the work, which all actors of a node share, the attempt's id, and the pool."""
        work, attempt, pool = ray.get(reference)
        self.worker = UnitWorker(work, pool, attempt)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Do one unit: a table of the row that :meth:`raypurify.jobs.work.UnitWorker.do` returns."""
        return pa.Table.from_pylist([self.worker.do(*_unpacked(block))])


class StageActor:
    """Does a stage of the units that blocks name or hold."""

    def __init__(self, work: ray.ObjectRef[StagedWork], stage: str, pool: ActorPool) -> None:
        self.worker = StageWorker(ray.get(work), stage, pool)

    def __call__(self, block: pa.Table) -> pa.Table:
        """The block of the next stage."""
        unit, marks, content, spent = _unpacked(block)
        return _packed(unit, marks, *self.worker.do(unit, marks, content, spent))


def _blocks(unit: Unit, marks: AbstractSet[str], *, apart: bool) -> Callable[[], Iterator[Block]]:
    """What makes the block of a unit: it names the unit and, where reads run ``apart``, holds what it reads."""
    if apart:
        return functools.partial(_read, unit, marks)
    return functools.partial(as_it_is, _packed(unit, marks, None, None))


def _read(unit: Unit, marks: AbstractSet[str]) -> Iterator[Block]:
    yield _packed(unit, marks, unit.read(), None)


def _packed(*parts: Any) -> pa.Table:
    """A block of a unit, its marks, what it reads or what was made of it, and what stages have spent on it."""
    return pa.table({"unit": pa.array([pickle.dumps(parts, 5)], pa.large_binary())})


def _unpacked(block: pa.Table) -> Any:
    return pickle.loads(block["unit"][0].as_buffer())
