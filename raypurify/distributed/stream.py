"""Training's streams of image batches on Ray Data: see :mod:`raypurify.training.order`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial

import numpy as np
import ray
from ray.data import Dataset
from ray.data.block import Block

from raypurify.distributed.blocks import blocks_of, read_task
from raypurify.training.arithmetic import return_freed_memory
from raypurify.training.order import EpochOrder, read_window

AHEAD_BYTES = 128 * 2**20
"""Bytes of blocks that lie ready for a worker at most: what it, and tasks that read, map of the object store."""


def _read_window(order: ray.ObjectRef[EpochOrder], epoch: int, number: int, skipped: int) -> Iterator[Block]:
    """A window of an order that lies in the object store: there are many windows, and an order may be large."""
    return_freed_memory()
    return read_window(_fetched(order), epoch, number, skipped)


@lru_cache(maxsize=1)
def _fetched(order: ray.ObjectRef[EpochOrder]) -> EpochOrder:
    fetched: EpochOrder = ray.get(order)
    return fetched


def training_stream(order: EpochOrder, epochs: Sequence[int], first: int, read_cpus: float) -> Dataset:
    """This worker's part of the global batches of ``epochs``, one after the other, of the first one from a step on.

    Iterated in batches of ``len(order.own)`` rows, batch k of the stream is step ``first + k``.
    """
    reference = ray.put(order)
    row_bytes = int(np.prod(order.image_shape))
    tasks = []
    for epoch in epochs:
        for number, skipped in order.windows_from(first if epoch == epochs[0] else 0):
            start = number * order.window_steps
            count = len(order.own) * (min(start + order.window_steps, order.steps) - start - skipped)
            read = partial(_read_window, reference, epoch, number, skipped)
            tasks.append(read_task(read, count, count * row_bytes))
    block = len(order.own) * order.block_steps * row_bytes
    return blocks_of(tasks, name="Images", read_cpus=read_cpus, ordered=block, ahead=AHEAD_BYTES)
