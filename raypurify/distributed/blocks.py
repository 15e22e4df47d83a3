"""Blocks that read tasks make on Ray Data. The processes that run such tasks load no torch for what is here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import ray
from ray.data import Dataset, Datasource, ExecutionResources, ReadTask
from ray.data.block import Block, BlockMetadata


def as_it_is(block: pa.Table) -> Iterator[Block]:
    """A block that is there already."""
    yield block


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
