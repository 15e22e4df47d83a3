"""What a purifier costs: how fast it is, and how large."""

from __future__ import annotations

import time

import torch
from torch import nn

from raypurify import models
from raypurify.attacks import purify

SECONDS = 1.0
"""A purifier is timed for so long at least, after one batch that warms it up."""
BATCH = 50
"""Images at once."""


def rate(purifier: nn.Module, shape: tuple[int, int, int], device: str) -> float:
    """Images a second that a purifier purifies, in batches of noise.

    Args:
        purifier: on the CPU, in eval.
        shape: (H, W, C) of the images.
        device: where it computes.
    """
    network = models.placed(purifier, device)
    height, width, channels = shape
    x = torch.rand(BATCH, channels, height, width, generator=torch.Generator().manual_seed(0)).to(device)
    seeds = list(range(BATCH))
    done, started = 0, 0.0
    with torch.no_grad(), models.autocast(device, "float32"):
        purify(network, x, seeds)
        started = time.perf_counter()
        while time.perf_counter() - started < SECONDS:
            purify(network, x, seeds)
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            done += BATCH
    return done / (time.perf_counter() - started)


def parameters(network: nn.Module) -> int:
    """How many numbers a network has learned."""
    return sum(parameter.numel() for parameter in network.parameters())
