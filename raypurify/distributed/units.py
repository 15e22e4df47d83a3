"""Planned units through a pool of actors on Ray Data, and blocks that read tasks make."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset, Datasource, ExecutionResources, ReadTask
from ray.data.block import Block, BlockMetadata

from raypurify.distributed import cluster
from raypurify.jobs.engine import Rows
from raypurify.jobs.resources import ActorPool
from raypurify.jobs.work import StagedWork, StageWorker, Todo, Unit, UnitWorker, Work

UNIT_BYTES = 4 << 20
"""Bytes of a unit's block, about: what Ray Data is told."""


def rows(work: Work, todo: Sequence[Todo[Any]], pool: ActorPool, attempt: str) -> Rows:
    """See :meth:`raypurify.jobs.engine.Engine.do`: each unit goes to one actor of the pool."""
    apart = pool.reads == "apart"
    tasks = [read_task(functools.partial(_blocks, unit, marks, apart), None, UNIT_BYTES) for unit, marks in todo]
    read_cpus = cluster.read_cpus(pool.read_cpus, pool.needs) if apart else 0
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


def _blocks(unit: Unit, marks: AbstractSet[str], apart: bool) -> Iterator[Block]:
    """The block of a unit: it names the unit and, where reads run ``apart``, holds what it reads."""
    yield _packed(unit, marks, unit.read() if apart else None, None)


def _packed(*parts: Any) -> pa.Table:
    """A block of a unit, its marks, what it reads or what was made of it, and what stages have spent on it."""
    return pa.table({"unit": pa.array([pickle.dumps(parts, 5)], pa.large_binary())})


def _unpacked(block: pa.Table) -> Any:
    return pickle.loads(block["unit"][0].as_buffer())


class BlockReader(Datasource):
    """A Ray Data source of given read tasks."""

    def __init__(self, tasks: Sequence[ReadTask], name: str) -> None:
        super().__init__()
        self._tasks, self._name = tasks, name

    def get_name(self) -> str:
        return self._name

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism, per_task_row_limit=None, data_context=None):  # type: ignore[no-untyped-def]
        return list(self._tasks)


def read_task(read: Callable[[], Iterator[Block]], rows: int | None, size: int) -> ReadTask:
    """A task that reads blocks of so many rows, if that is known, and about ``size`` bytes."""
    return ReadTask(read, BlockMetadata(num_rows=rows, size_bytes=size, exec_stats=None, input_files=None))


def blocks_of(
    tasks: Sequence[ReadTask], *, name: str, read_cpus: float, ordered: int | None = None, ahead: int | None = None
) -> Dataset:
    """What read tasks read: each task's blocks joined, as they come.

    Args:
        tasks: see :func:`read_task`.
        name: of the stage.
        read_cpus: of a task. With 0 the tasks wait for no CPU, so that actors may take all; then two run at a time.
        ordered: bytes of a block; blocks stay as they are then, in the order of their tasks.
        ahead: bytes of blocks that lie ready, at most.
    """
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = ordered is not None
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=ahead)
    context.target_max_block_size = ordered
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0  # a pool grows while all its actors work
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    with ray.data.DataContext.current(context):
        return ray.data.read_datasource(
            BlockReader(tasks, name),
            num_cpus=read_cpus,
            concurrency=None if read_cpus else min(2, len(tasks)) or None,
            override_num_blocks=len(tasks),
        )
