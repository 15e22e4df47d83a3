"""What a GPU does in training, evaluation and cleaning: images/s, how busy it is, and its share of the measured peak.

The peak is a product of large matrices in the same precision. Each job runs in this process (``--local``), reading and
writing included; its rate is its run's own. A GPU's use is what ``nvidia-smi`` tells each half second, on the mean.
Gradients of the input, through a purifier and a classifier, are measured by CUDA graphs and without.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import _harness
import torch
from cleaning import pictures, purifier
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import raypurify
from raypurify import models, storage
from raypurify.attacks import Composite, Graphs, frozen
from raypurify.attacks._gradients import input_gradient
from raypurify.data import open_source
from raypurify.evaluation.batch import Evaluator
from raypurify.evaluation.grid import EvaluationConfig, build_grid
from raypurify.evaluation.units import batches_of, units_of
from raypurify.jobs.resources import TrainingResources
from raypurify.jobs.train import prepare
from raypurify.training.batches import batch_of
from raypurify.training.config import TrainingConfig
from raypurify.training.order import epoch_batches
from raypurify.training.worker import Worker

BATCH = 250
SIDE = 256
BATCHES, PASSES = (128, 256, 512, 1024), 20
PARTS = ("gradients", "training", "evaluation", "cleaning")
GPU_USE = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=500", "--id=0"]


class Operations(TorchDispatchMode):
    """Counts the block's floating point operations by torch's formulas; its own counter fails in ``autograd.grad``."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


@dataclass(kw_only=True)
class Use:
    """How busy the GPU was."""

    percents: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float | None:
        """In percent; None where nothing tells."""
        return statistics.mean(self.percents) if self.percents else None


@contextmanager
def watched() -> Iterator[Use]:
    """Ask how busy the GPU is while the block runs."""
    use = Use()
    if shutil.which("nvidia-smi") is None:
        yield use
        return
    process = subprocess.Popen(GPU_USE, stdout=subprocess.PIPE, text=True)
    try:
        yield use
    finally:
        process.terminate()
        use.percents = [float(line) for line in process.communicate()[0].split() if line.isdigit()]


def peak(device: str, precision: models.Precision, side: int) -> float:
    """Floating point operations a second of a product of matrices of ``side`` x ``side``."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    rates = []
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        rates.append(2 * side**3 / (time.perf_counter() - started))
    return max(rates)


def gradients(device: str, quick: bool) -> list[dict[str, Any]]:
    """Input gradients of the cross-entropy, images a second: by CUDA graphs, and kernel by kernel."""
    precision = models.fast_precision(device)
    loaded = models.load("classifier", "weights/mnist/a_net"), models.load("purifier", "weights/mnist/cru_net-a_net")
    victim = Composite(*(models.placed(model.build(), device) for model in loaded))
    results = []
    for batch in BATCHES[:1] if quick else BATCHES:
        x, y = torch.rand(batch, 1, 28, 28, device=device), torch.zeros(batch, dtype=torch.int64, device=device)
        ways = {"graph": partial(_passes, Graphs().of(victim), x, y), "one by one": partial(_passes, victim, x, y)}
        with frozen(victim), models.autocast(device, precision):
            rates = {
                name: _harness.median_rate(batch * PASSES, turns)
                for name, turns in _harness.seconds_in_turns(ways, 3).items()
            }
        name = f"input gradients, CRU-Net and A-net, {precision}, batches of {batch}"
        compared = rates["graph"], rates["one by one"], "the same kernels, launched one by one", batch * PASSES
        results.append(_harness.result(name, "images/s", *compared))
    return results


def _passes(victim: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    for _ in range(PASSES):
        gradient, _ = input_gradient(victim, x, y)
    gradient.sum().item()


def training(config: TrainingConfig, device: str, folder: str) -> tuple[float, float]:
    """Operations that an image takes, and images a second after the first epoch."""
    flags = {name: getattr(config, name) for name in ("data", "classifier", "epochs", "limit", "precision", "batch")}
    flags |= {"validation": 0, "output": f"{folder}/run", "use_gpu": device == "cuda"}
    raypurify.train("digits", engine="local", **flags)
    metrics = storage.read_table(f"{folder}/run/metrics.parquet")
    later = metrics["epoch"].to_numpy() > 0
    seconds = config.batch / metrics["images_per_second"].to_numpy()[later]
    worker = Worker(prepare(config, TrainingResources()), 0, 1, device)
    objective = cast(Any, worker.objective)
    objective.graphs = objective.update_graphs = None  # nothing counts what a graph does
    rows = next(epoch_batches(worker.order, 0))
    with Operations() as counted:
        worker.step(0, rows)
    return counted.total / config.batch, config.batch * later.sum() / seconds.sum()


def evaluation(config: EvaluationConfig, device: str, folder: str) -> tuple[float, float]:
    """Operations that an image takes, and images a second."""
    flags: dict[str, Any] = {name: [*getattr(config, name)] for name in ("classifiers", "purifiers", "attacks")}
    flags |= {"gpus_per_actor": int(device == "cuda"), "actors": 1, "batch": BATCH, "limit": config.limit}
    raypurify.evaluate(data=config.data, output=f"{folder}/run", engine="local", **flags)
    run = storage.read_json(f"{folder}/run/run.json")
    source = open_source(config.data, split=config.split, limit=BATCH)
    evaluator = Evaluator(build_grid(config, source.name, source.rows), device)
    ids, images, labels = next(batches_of(next(iter(units_of(source, BATCH))).read(), lambda shape: BATCH))
    batch = batch_of(images, labels, (), device)
    with Operations() as counted:
        list(evaluator.evaluate(batch.x, batch.y, ids))
    return counted.total / len(ids), run["attempts"][0]["counts"]["images_per_second"]


def cleaning(count: int, device: str, folder: str) -> tuple[float, float]:
    """Operations that an image takes, and images a second."""
    Path(folder, "in").mkdir()
    for number, picture in enumerate(pictures(count, SIDE)):
        Path(folder, "in", f"{number:05d}.png").write_bytes(picture)
    learned = purifier(folder)
    own: dict[str, Any] = {"gpus_per_actor": int(device == "cuda"), "actors": 1}
    raypurify.clean(input=f"{folder}/in", purifier=learned, output=f"{folder}/run", engine="local", **own)
    run = storage.read_json(f"{folder}/run/run.json")
    network = models.placed(models.load("purifier", learned).build(), device)
    with Operations() as counted, torch.no_grad():
        network(torch.rand(1, 3, SIDE, SIDE, device=device))
    return counted.total, run["attempts"][0]["counts"]["images_per_second"]


def main() -> None:
    """Measure and print the JSON object."""
    parser = _harness.arguments(__doc__)
    parser.add_argument("--data", default="mnist", help="dataset of 28x28 grey images")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: to try the script")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="parts to measure")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU on this machine; --device cpu tries the script without one")
    images, epochs = (500, 2) if options.quick else (10_000, 4)
    fast = models.fast_precision(options.device)
    trained = TrainingConfig(
        data=options.data,
        model="cru_net",
        classifier="weights/mnist/a_net",
        epochs=epochs,
        limit=images,
        validation=0,
        precision=fast,
        batch=256,
    )
    evaluated = EvaluationConfig(
        data=options.data,
        limit=images,
        classifiers=("weights/mnist/a_net",),
        purifiers=("weights/mnist/cru_net-a_net",),
        attacks=("pgd,steps=5" if options.quick else "pgd",),
    )
    jobs = {
        f"training, {fast}": (fast, lambda folder: training(trained, options.device, folder)),
        "evaluation, float32": ("float32", lambda folder: evaluation(evaluated, options.device, folder)),
        "cleaning, 256x256, float32": ("float32", lambda folder: cleaning(images // 10, options.device, folder)),
    }
    results = gradients(options.device, options.quick) if "gradients" in options.only else []
    for name, (precision, run) in jobs.items():
        if name.partition(",")[0] not in options.only:
            continue
        highest = peak(options.device, precision, 2048 if options.quick else 8192)
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(None), watched() as use:
            operations, rate = run(folder)
        compared = operations * rate / 1e9, highest / 1e9, "a product of large matrices", images
        results.append(_harness.result(name, "GFLOP/s", *compared, images_per_second=rate, gpu_use_percent=use.mean))
    _harness.report("gpu", results)


if __name__ == "__main__":
    main()
