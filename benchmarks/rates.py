"""What a core does in a second, for the planning table of cluster/README.md: cleaning of 256x256 images, passes at 224.

All is measured in CPU seconds of this process, which computes with one thread, so that a busy machine changes little.
A cleaning's figure is the difference of two runs by the difference of their images, so that what a run costs once is
left out. Images are pictures of noise over a gradient, about 100 KB each as PNG.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import _harness
import numpy as np
import torch
from cleaning import encoded, purifier
from torch import Tensor, nn
from torch.nn import functional as F

import raypurify
from raypurify import models
from raypurify.training.arithmetic import compute_on_cpus

SIDE = 256
GRADIENTS, BATCH = 224, 8


class Bottleneck(nn.Module):
    """A block of ResNet-50 (He et al. 2015)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)),
        )
        same = inputs == 4 * width
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x) + self.shortcut(x))


def resnet50() -> nn.Module:
    """ResNet-50 with random weights."""
    blocks: list[nn.Module] = []
    inputs = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(count):
            blocks.append(Bottleneck(inputs, width, 1 if number else stride))
            inputs = 4 * width
    stem = (nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))
    return nn.Sequential(*stem, *blocks, *head).eval()


def write_images(folder: Path, count: int) -> None:
    """Pictures of noise over a gradient."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    ramp = np.linspace(0, 200, SIDE)[:, None, None]
    for number in range(count):
        noise = generator.integers(0, 40, (SIDE, SIDE, 3))
        (folder / f"{number:05d}.png").write_bytes(encoded((ramp + noise).astype(np.uint8)))


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU seconds of this process that a call takes."""
    started = time.process_time()
    run()
    return time.process_time() - started


def cleaned(source: str, network: str, limits: tuple[int, int]) -> float:
    """Images that a core cleans in a second; ``limits``: images of the two runs."""
    few, many = (cpu_seconds(partial(_clean, source, network, limit)) for limit in limits)
    return (limits[1] - limits[0]) / (many - few)


def _clean(source: str, network: str, limit: int) -> None:
    with tempfile.TemporaryDirectory() as output, redirect_stdout(None):
        raypurify.clean(input=source, purifier=network, limit=limit, actors=1, engine="local", output=f"{output}/run")


def passes(network: nn.Module, shape: tuple[int, ...], *, gradient: bool) -> float:
    """Images a second through a network; with ``gradient``, and back to the input."""
    x = torch.rand(shape, requires_grad=gradient)

    def run(times: int) -> None:
        for _ in range(times):
            with torch.set_grad_enabled(gradient):
                y = network(x)
                if gradient:
                    torch.autograd.grad(y.sum(), x)

    run(1)
    return 3 * shape[0] / cpu_seconds(partial(run, 3))


def main() -> None:
    """Measure and print the JSON object."""
    options = _harness.arguments(__doc__).parse_args()
    compute_on_cpus(1)
    limits = (4, 20) if options.quick else (10, 100)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder, "in"), limits[1])
        learned = purifier(folder)
        cru_net = models.placed(models.load("purifier", learned).build(), "cpu")
        bare = passes(cru_net, (BATCH, 3, SIDE, SIDE), gradient=False)
        ours, without = (cleaned(f"{folder}/in", name, limits) for name in (learned, "identity"))
    network = resnet50().requires_grad_(False)
    forward, back = (passes(network, (BATCH, 3, GRADIENTS, GRADIENTS), gradient=gradient) for gradient in (False, True))
    unit = "images/core second"
    results = [
        _harness.result("cleaning by CRU-Net, 256x256", unit, ours, bare, "its bare forward pass", limits[1]),
        _harness.result("cleaning by the identity, 256x256", unit, without, ours, "by CRU-Net", limits[1]),
        _harness.result("ResNet-50, forward and back, 224x224", unit, back, forward, "forward", BATCH),
    ]
    _harness.report("rates", results)


if __name__ == "__main__":
    main()
