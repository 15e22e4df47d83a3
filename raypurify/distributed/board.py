"""What a worker of a training tells the driver as it goes: no store is written for that."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PAUSE = 0.2
"""Seconds between looks at the board."""
SELDOM = 1.0
"""Seconds between figures of the progress within an epoch."""
JOINED = 10.0
"""Seconds that the last look may take."""


class Board:
    """Keeps what is told until the driver takes it: an actor on the driver's node, which takes no CPU."""

    def __init__(self) -> None:
        self.told: list[tuple[str, tuple[Any, ...]]] = []

    def tell(self, what: str, *values: Any) -> None:
        """Keep the name of a method of the monitor, and what it is called with."""
        self.told.append((what, values))

    def take(self) -> list[tuple[str, tuple[Any, ...]]]:
        """All that was told since the last time, in its order."""
        told, self.told = self.told, []
        return told


class Teller:
    """The first worker's way to the board, and that of the others, who have nothing to tell; it waits for nothing."""

    def __init__(self, board: ActorHandle | None) -> None:
        self.board, self._progressed = board, time.monotonic()

    def __call__(self, what: str, *values: Any) -> None:
        if self.board is not None:
            self.board.tell.remote(what, *values)

    def progressed(self, *values: Any) -> None:
        """Tell of the progress within an epoch, but seldom."""
        if time.monotonic() - self._progressed >= SELDOM:
            self._progressed = time.monotonic()
            self("progressed", *values)


@contextmanager
def followed(monitor: Any) -> Iterator[ActorHandle]:
    """A board, and a thread that calls the methods of ``monitor`` by what is told there, until the block ends."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    board: Any = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
    ended = threading.Event()

    def follow() -> None:
        last = False
        with suppress(ray.exceptions.RayError):  # a lost board costs the sight of a training, not the training
            while not last:
                last = ended.wait(PAUSE)
                for what, values in ray.get(board.take.remote()):
                    getattr(monitor, what)(*values)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield board
    finally:
        ended.set()
        thread.join(JOINED)
        ray.kill(board)
