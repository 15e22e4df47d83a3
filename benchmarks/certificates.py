"""Certificates: draws a second on Ray against bare loops as the method's authors write them.

The baseline is the better of two: one process that uses all cores in its networks' arithmetic, and a process a core, of
one thread each. Each repeats an image, adds noise of torch's generator, purifies, classifies and counts. Start-up of
Ray, actors and processes is left out.

And whether bfloat16 biases the vote: the same draws in both types, in one process.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.synchronize import Barrier
from typing import Any

import _harness
import torch
from scipy import stats
from torch import Tensor

from raypurify import models, storage
from raypurify.attacks import purify
from raypurify.data import open_source
from raypurify.evaluation.certification import CertificationConfig, Smoothed
from raypurify.evaluation.units import batches_of, units_of
from raypurify.jobs.certify import certify
from raypurify.jobs.resources import ActorPool
from raypurify.training.arithmetic import compute_on_cpus
from raypurify.training.batches import batch_of

CLASSIFIER, PURIFIER = "weights/mnist/a_net", "weights/mnist/cru_net-a_net-denoiser-0.5"
SIGMA = 0.5
BATCH = 250


def config_of(data: str, limit: int, draws: int) -> CertificationConfig:
    """What is certified."""
    networks: dict[str, Any] = {"classifiers": (CLASSIFIER,), "purifiers": (PURIFIER,)}
    return CertificationConfig(data=data, limit=limit, sigmas=(SIGMA,), draws=draws, attack_images=0, **networks)


def on_ray(data: str, limit: int, draws: int, actors: int) -> float:
    """Draws a second of a run, by the times of its own ``run.json``."""
    config = config_of(data, limit, draws)
    with tempfile.TemporaryDirectory() as output:
        certify(config, ActorPool(actors=actors, cpus_per_actor=1, batch=BATCH), output + "/run")
        run = storage.read_json(output + "/run/run.json")
    (began, _), *_, (ended, images) = run["attempts"][0]["counts"]["timeline"]
    return float(images * (draws + config.guesses) / (ended - began))


def loop(data: str, limit: int, draws: int, share: int, shares: int) -> None:
    """Count the votes of every so many-th image."""
    classifier, purifier = (
        models.placed(models.load(kind, text).build(), "cpu")  # type: ignore[arg-type]
        for kind, text in (("classifier", CLASSIFIER), ("purifier", PURIFIER))
    )
    source = open_source(data, split="test", limit=limit)
    for unit in units_of(source, limit):
        for _, images, labels in batches_of(unit.read(), lambda shape: limit):
            x = batch_of(images, labels, (), "cpu").x
            with torch.no_grad():
                for image in x[share::shares]:
                    votes = torch.zeros(10, dtype=torch.int64)
                    for first in range(0, draws, BATCH):
                        repeated = image.expand(min(BATCH, draws - first), -1, -1, -1)
                        noisy = repeated + SIGMA * torch.randn_like(repeated)
                        votes += torch.bincount(classifier(purifier(noisy)).argmax(dim=1), minlength=10)


def one_process(data: str, limit: int, draws: int, cores: int) -> float:
    """Draws a second of one process with a thread a core."""
    compute_on_cpus(cores)
    started = time.perf_counter()
    loop(data, limit, draws, 0, 1)
    return limit * draws / (time.perf_counter() - started)


def process_per_core(data: str, limit: int, draws: int, cores: int) -> float:
    """Draws a second of a process a core, each of which has its share of the images."""
    context = multiprocessing.get_context("spawn")
    barrier, clocks = context.Barrier(cores), context.SimpleQueue()
    arguments = [(data, limit, draws, share, cores, barrier, clocks) for share in range(cores)]
    processes = [context.Process(target=_timed_share, args=own) for own in arguments]
    for process in processes:
        process.start()
    started, ended = zip(*(clocks.get() for _ in processes), strict=True)
    for process in processes:
        process.join()
    return limit * draws / (max(ended) - min(started))


def _timed_share(
    data: str,
    limit: int,
    draws: int,
    share: int,
    shares: int,
    barrier: Barrier,
    clocks: multiprocessing.SimpleQueue[tuple[float, float]],
) -> None:
    compute_on_cpus(1)
    barrier.wait()
    started = time.time()
    loop(data, limit, draws, share, shares)
    clocks.put((started, time.time()))


def in_both_types(data: str, limit: int, draws: int) -> dict[str, Any]:
    """The same draws in bfloat16 and in float32: draws a second, and whether the one is right more often."""
    compute_on_cpus(len(os.sched_getaffinity(0)))
    config = config_of(data, limit, draws)
    networks = models.placed(models.load("classifier", CLASSIFIER).build(), "cpu"), models.load_network(PURIFIER)
    smoothed = Smoothed(networks, SIGMA, config, "cpu", BATCH)
    types: tuple[models.Precision, ...] = ("float32", "bfloat16")
    labels: list[Tensor] = []
    answers: dict[str, list[Tensor]] = {precision: [] for precision in types}
    seconds = dict.fromkeys(types, 0.0)
    for unit in units_of(open_source(data, split="test", limit=limit), limit):
        for ids, images, own in batches_of(unit.read(), lambda shape: limit):
            batch = batch_of(images, own, (), "cpu")
            for rows, noisy, seeds in smoothed.noisy(batch.x, ids, "count", 0, draws):
                labels.append(batch.y[rows])
                for precision in types:
                    started = time.perf_counter()
                    with torch.no_grad(), models.autocast("cpu", precision):
                        told = networks[0](purify(networks[1], noisy, seeds)).argmax(dim=1)
                    seconds[precision] += time.perf_counter() - started
                    answers[precision].append(told)
    told_full, told_half = (torch.cat(answers[precision]) for precision in types)
    full, half = (told == torch.cat(labels) for told in (told_full, told_half))
    lost, won = int((full & ~half).sum()), int((~full & half).sum())
    return _harness.result(
        "bfloat16 against float32",
        "draws/s",
        len(full) / seconds["bfloat16"],
        len(full) / seconds["float32"],
        "float32",
        len(full),
        answers_that_differ=float((told_full != told_half).float().mean()),
        right_in_float32=float(full.float().mean()),
        right_in_bfloat16=float(half.float().mean()),
        right_in_float32_alone=lost,
        right_in_bfloat16_alone=won,
        p_of_no_bias=float(stats.binomtest(won, lost + won).pvalue) if lost + won else 1.0,
    )


def speed(data: str, limit: int, draws: int, turns: int) -> list[dict[str, Any]]:
    """Draws a second on Ray against the better loop, and against one actor."""
    cores, sizes = len(os.sched_getaffinity(0)), (data, limit, draws)
    contestants = {
        "an actor a core": lambda: on_ray(*sizes, cores),
        "one actor": lambda: on_ray(*sizes, 1),
        "one process, all cores": lambda: one_process(*sizes, cores),
        "one process a core": lambda: process_per_core(*sizes, cores),
    }
    turned = [{name: run() for name, run in contestants.items()} for _ in range(turns)]
    rates = {name: statistics.median(turn[name] for turn in turned) for name in contestants}
    baseline = max(("one process, all cores", "one process a core"), key=rates.__getitem__)
    pairs = (("an actor a core", baseline), ("an actor a core", "one actor"))
    return [
        _harness.result(f"{ours} against {other}", "draws/s", rates[ours], rates[other], other, limit, turns=turns)
        for ours, other in pairs
    ]


PARTS = ("speed", "precision")


def main() -> None:
    """Measure in turns and print the JSON object."""
    parser = _harness.arguments(__doc__)
    parser.add_argument("--data", default="mnist", help="dataset of 28x28 grey images")
    parser.add_argument("--limit", type=int, default=64, help="images")
    parser.add_argument("--draws", type=int, default=1000, help="of each image")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="parts to measure")
    parser.add_argument("--turns", type=int, default=3, help="the figures are medians of so many")
    options = parser.parse_args()
    limit, draws, turns = (32, 300, 1) if options.quick else (options.limit, options.draws, options.turns)
    sizes = (options.data, limit, draws)
    results = speed(*sizes, turns) if "speed" in options.only else []
    results += [in_both_types(*sizes)] if "precision" in options.only else []
    _harness.report("certificates", results, packages=("torch", "ray"))


if __name__ == "__main__":
    _harness.share_modules()
    main()
