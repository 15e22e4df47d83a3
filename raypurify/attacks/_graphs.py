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

Gradient = Callable[[nn.Module, Tensor, Tensor, int], tuple[Tensor, Tensor]]
""":func:`raypurify.attacks._gradients.input_gradient`, of a victim that is called as it is."""

MULTIPLE = 64
"""Batches are filled up to a multiple of this, so that those of a training need few graphs."""
KEPT = 8
"""Graphs that are kept. Each holds the memory of a pass forward and back."""
WARM_UP = 3
"""Passes before a graph is captured, in which libraries choose their kernels."""


class Graphs:
    """The graphs of victims that compute alike whenever their weights are in the same memory.

    Weights may change where they are, as an optimiser changes them.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], Captured | None] = {}

    def of(self, victim: nn.Module) -> nn.Module:
        """The victim with these graphs; itself where it draws at random, or says what it suspects."""
        is_fixed = not getattr(getattr(victim, "purifier", None), "random", False)
        return Graphed(victim, self) if is_fixed and not hasattr(victim, "suspicion") else victim

    def find(self, gradient: Gradient, victim: nn.Module, x: Tensor, sign: int) -> Captured | None:
        """The graph for batches like ``x``, captured where there is none yet; None where that failed before."""
        size = len(x) + -len(x) % MULTIPLE
        precision = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        weights = [value.data_ptr() for value in (*victim.parameters(), *victim.buffers())]
        key = (size, *x.shape[1:], sign, precision, torch.backends.cudnn.allow_tf32, *weights)
        if key not in self._made:
            while len(self._made) >= KEPT:
                del self._made[next(iter(self._made))]
            self._made[key] = _captured(gradient, victim, x, size, sign)
        return self._made[key]


class Graphed(nn.Module):
    """A victim and its graphs, by which attacks that take one gradient of each pass take it on a GPU."""

    def __init__(self, victim: nn.Module, graphs: Graphs) -> None:
        super().__init__()
        self.victim, self.graphs = victim, graphs

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K), as the victim."""
        logits: Tensor = self.victim(x)
        return logits

    def gradient(self, gradient: Gradient, x: Tensor, labels: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        """What ``gradient`` finds, by a graph where there can be one. A victim that waits for the GPU has none."""
        graph = self.graphs.find(gradient, self.victim, x, sign) if x.is_cuda else None
        return gradient(self.victim, x, labels, sign) if graph is None else graph.replay(x, labels)


@dataclass(frozen=True, kw_only=True)
class Captured:
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


def _captured(gradient: Gradient, victim: nn.Module, like: Tensor, size: int, sign: int) -> Captured | None:
    x = like.new_zeros(size, *like.shape[1:]).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(size, dtype=torch.int64, device=like.device)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            gradient(victim, x, labels, sign)
    torch.cuda.current_stream().wait_stream(stream)
    try:
        # Other threads, such as those of NCCL and Ray, go on talking to the GPU.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            found = gradient(victim, x, labels, sign)
    except RuntimeError as error:
        warnings.warn(f"no CUDA graph of the victim, which is slower without: {error}", stacklevel=2)
        return None
    return Captured(graph=graph, x=x, labels=labels, found=found)
