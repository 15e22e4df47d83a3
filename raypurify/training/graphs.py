"""CUDA graphs of a training's updates.

A small network's step on a GPU is over sooner than its kernels are launched, one by one, from Python. A graph launches
all of them at once.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

Update = Callable[..., dict[str, Tensor]]
"""A function of tensors that changes weights and the states of optimisers where they are; it returns scalars."""

LARGEST = 1 << 20
"""Pixels (height times width) of a batch at most: updates by larger ones take longer than their launches."""
KEPT = 4
"""Graphs at most."""
SEEN = 16
"""Updates and shapes at most that are waited for: an update that is another function each time would never be done."""
WARM_UP = 3
"""Updates before one is captured. They are those of the training's first batches."""


class UpdateGraphs:
    """Updates of networks, each by a graph of its own once it ran a few times on tensors of the same shapes."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self._networks = networks
        self._pool = torch.cuda.graph_pool_handle()
        self._ran: Counter[tuple[object, ...]] = Counter()
        self._made: dict[tuple[object, ...], CapturedUpdate] = {}
        self._possible = True

    def run(self, update: Update, tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Update by these tensors; the scalars are detached, and the caller's own."""
        # The function of a method, since the method would hold the objective, which holds these graphs.
        key = (getattr(update, "__func__", update), *((one.shape, one.dtype) for one in tensors))
        if key in self._made:
            return self._made[key].replay(tensors)
        pixels = max((one.shape[0] * one.shape[2:].numel() for one in tensors if one.ndim > 2), default=0)
        if not self._possible or pixels > LARGEST or (key not in self._ran and len(self._ran) == SEEN):
            return update(*tensors)
        if self._ran[key] < WARM_UP:
            self._ran[key] += 1
            return self._warmed(update, tensors, is_last=self._ran[key] == WARM_UP)
        if len(self._made) < KEPT and (captured := self._captured(update, tensors)):
            self._made[key] = captured
            return captured.replay(tensors)
        return update(*tensors)

    def _warmed(self, update: Update, tensors: tuple[Tensor, ...], *, is_last: bool) -> dict[str, Tensor]:
        """An update on a stream of its own, as captures need it, which finds out whether it can be captured."""
        before = self._state()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), _waits() as waits, _cast_anew():
            found = update(*tensors)
        torch.cuda.current_stream().wait_stream(stream)
        if self._state() != before:
            self._give_up("they draw on the CPU, or put other tensors in the place of weights and buffers")
        elif waits and is_last:
            self._give_up(waits[0])
        return found

    def _state(self) -> tuple[object, ...]:
        """What an update that can be captured leaves alone: the generators of the CPU, and where weights lie."""
        places = [value.data_ptr() for one in self._networks for value in (*one.parameters(), *one.buffers())]
        return torch.default_generator.get_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), places  # type: ignore[index]

    def _captured(self, update: Update, tensors: tuple[Tensor, ...]) -> CapturedUpdate | None:
        """A new graph, which nothing ran by; None, and a warning, where the update cannot be captured."""
        try:
            given = tuple(one.clone() for one in tensors)
            graph = torch.cuda.CUDAGraph()
            # Other threads, such as those of NCCL and Ray, go on talking to the GPU. The outer block brings the stream
            # back, which a capture that fails does not.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
                _cast_anew(),
            ):
                found = update(*given)
        except RuntimeError as error:
            self._give_up(str(error.__context__ or error))
            return None
        return CapturedUpdate(graph=graph, given=given, found=found)

    def _give_up(self, cause: str) -> None:
        self._possible = False
        warnings.warn(f"no CUDA graphs of the training's steps, which are slower without: {cause}", stacklevel=4)


@dataclass(frozen=True, kw_only=True)
class CapturedUpdate:
    """A graph, and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    given: tuple[Tensor, ...]
    found: dict[str, Tensor]

    def replay(self, tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Update by these tensors."""
        for own, one in zip(self.given, tensors, strict=True):
            own.copy_(one)
        self.graph.replay()
        return {name: value.clone() for name, value in self.found.items()}


@contextmanager
def _cast_anew() -> Iterator[None]:
    """Cast weights to the precision of autocast at each use: those that it keeps are older than a graph's next run."""
    dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
    with torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False):
        yield


@contextmanager
def _waits() -> Iterator[list[str]]:
    """Collect what is told of waits for the GPU while the block runs."""
    told: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield told
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for one in caught:
        if "called a synchronizing" in str(one.message):
            told.append(str(one.message))
        elif "prototype feature" not in str(one.message):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
