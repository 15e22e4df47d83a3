"""CUDA graphs of gradients.

A small network's pass on a GPU is over sooner than its kernels are launched, one by one, from Python. A graph launches
all of them at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raypurify.attacks._victims import Composite, is_random

Gradient = Callable[[nn.Module, Tensor, Tensor, int], tuple[Tensor, Tensor]]
""":func:`raypurify.attacks._gradients.input_gradient`, of a victim that is called as it is."""

MULTIPLE = 64
"""Batches are filled up to a multiple of this, so that those of a training need few graphs."""
LARGEST = 1 << 20
"""Pixels (height times width) of a full batch at most: the passes of larger ones take longer than their launches."""
KEPT = 8
"""Graphs at most."""
WARM_UP = 3
"""Passes before a graph is captured, in which libraries choose their kernels."""


class Graphs:
    """The graphs of victims that compute alike whenever their weights are in the same memory.

    Weights may change where they are, as an optimiser changes them. A module whose answers follow from more than its
    input, its weights and its buffers says ``cuda_graphs = False``.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], CapturedGradient | None] = {}
        self._pool: Any = None
        self._failed = False

    def of(self, victim: nn.Module) -> nn.Module:
        """The victim with these graphs; itself where its purifier draws at random, or where it suspects images."""
        draws = isinstance(victim, Composite) and is_random(victim.purifier)
        is_fixed = all(getattr(module, "cuda_graphs", True) for module in victim.modules())
        return Graphed(victim, self) if is_fixed and not draws and not hasattr(victim, "suspicion") else victim

    def find(self, gradient: Gradient, victim: nn.Module, x: Tensor, sign: int) -> CapturedGradient | None:
        """The graph for batches like ``x``, captured where there is none yet; None where there can be none."""
        size = len(x) + -len(x) % MULTIPLE
        if victim.training or size * x.shape[2] * x.shape[3] > LARGEST:
            return None
        precision = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        weights = [value.data_ptr() for value in (*victim.parameters(), *victim.buffers())]
        key = (size, *x.shape[1:], sign, precision, torch.backends.cudnn.allow_tf32, *weights)
        if key not in self._made and len(self._made) < KEPT and not self._failed:
            self._made[key] = self._captured(gradient, victim, x, size, sign)
        return self._made.get(key)

    def _captured(
        self, gradient: Gradient, victim: nn.Module, like: Tensor, size: int, sign: int
    ) -> CapturedGradient | None:
        """A new graph; None, and a warning, where the victim cannot be captured: then no other is tried."""
        try:
            x = like.new_zeros(size, *like.shape[1:]).contiguous(memory_format=torch.channels_last)
            labels = torch.zeros(size, dtype=torch.int64, device=like.device)
            _warm_up(gradient, victim, x, labels, sign)
            graph = torch.cuda.CUDAGraph()
            self._pool = torch.cuda.graph_pool_handle() if self._pool is None else self._pool
            # Other threads, such as those of NCCL and Ray, go on talking to the GPU. The outer block brings the stream
            # back, which a capture that fails does not.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
            ):
                found = gradient(victim, x, labels, sign)
        except RuntimeError as error:
            self._failed = True
            cause = error.__context__ or error
            warnings.warn(f"no CUDA graphs of the attacked network, which is slower without: {cause}", stacklevel=2)
            return None
        return CapturedGradient(graph=graph, x=x, labels=labels, found=found)


class Graphed(nn.Module):
    """A victim and its graphs, by which attacks that follow its input gradient take it on a GPU."""

    def __init__(self, victim: nn.Module, graphs: Graphs) -> None:
        super().__init__()
        self.victim, self.graphs, self.training = victim, graphs, victim.training

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K), as the victim."""
        logits: Tensor = self.victim(x)
        return logits

    def gradient(self, gradient: Gradient, x: Tensor, labels: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        """What ``gradient`` finds, by a graph where there can be one."""
        graph = self.graphs.find(gradient, self.victim, x, sign) if x.is_cuda else None
        return gradient(self.victim, x, labels, sign) if graph is None else graph.replay(x, labels)


@dataclass(frozen=True, kw_only=True)
class CapturedGradient:
    """A graph, and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    labels: Tensor
    found: tuple[Tensor, Tensor]

    def replay(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What the graph finds of a batch. Images that fill it up are of an earlier one: each counts for itself."""
        self.x[: len(x)].copy_(x)
        self.labels[: len(x)].copy_(labels)
        self.graph.replay()
        gradient, ahead = (one[: len(x)].clone() for one in self.found)
        return gradient, ahead


def _warm_up(gradient: Gradient, victim: nn.Module, x: Tensor, labels: Tensor, sign: int) -> None:
    """Passes on a stream of their own, as captures need it.

    Raises:
        RuntimeError: the victim waits for the GPU, which no capture allows; one that fails may break what follows.
    """
    stream, before = torch.cuda.Stream(), torch.cuda.get_sync_debug_mode()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP - 1):
                gradient(victim, x, labels, sign)
            _tell_of_waits("error")
            gradient(victim, x, labels, sign)
    finally:
        _tell_of_waits(before)
        torch.cuda.current_stream().wait_stream(stream)


def _tell_of_waits(mode: int | str) -> None:
    """Set what is done of waits for the GPU, in the whole process; PyTorch warns that the setting is a prototype."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)
