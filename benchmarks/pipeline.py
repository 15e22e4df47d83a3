"""The Ray Data pipeline against bare loops: the same images, networks, figures and Parquet files.

All attack, purify, classify, score and write. The baseline is the better of two: one process that uses all cores in its
networks' arithmetic, and a process a core, of one thread each. Start-up of Ray, actors and processes is left out: the
clock runs from the first image to the last.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.synchronize import Barrier

import _harness
import pyarrow as pa

from raypurify import storage
from raypurify.data import BATCH_PIXELS, Source, batch_size, open_source
from raypurify.evaluation.batch import Evaluator
from raypurify.evaluation.grid import EvaluationConfig, build_grid
from raypurify.evaluation.units import Unit, batches_of, units_of
from raypurify.jobs.evaluate import evaluate
from raypurify.jobs.resources import ActorPool, StagePools
from raypurify.training.arithmetic import compute_on_cpus
from raypurify.training.batches import batch_of

BATCH = 250
ROWS = 500
"""Images of a unit of the loops."""


def pipeline(config: EvaluationConfig, actors: int, stages: StagePools | None = None) -> float:
    """Images a second of the Ray pipeline, by its own ``run.json``; ``stages``: with pools of their own."""
    pool = ActorPool(actors=actors, cpus_per_actor=1, batch=BATCH)
    with tempfile.TemporaryDirectory() as output:
        evaluate(config, pool, output + "/run", pools={} if stages is None else stages.apart(pool))
        run = storage.read_json(output + "/run/run.json")
    return float(run["attempts"][0]["counts"]["images_per_second"])


def source_of(config: EvaluationConfig) -> Source:
    """The dataset that a config names."""
    return open_source(config.data, split=config.split, limit=config.limit, view=config.view)


def score(evaluator: Evaluator, units: Sequence[Unit], output: str) -> None:
    """Do units one after the other."""
    for unit in units:
        scores: dict[str, list[pa.Table]] = {}
        for ids, images, labels in batches_of(unit.read(), partial(batch_size, BATCH, BATCH_PIXELS)):
            batch = batch_of(images, labels, (), "cpu")
            for scored in evaluator.evaluate(batch.x, batch.y, ids):
                scores.setdefault(scored.cell.hash, []).append(scored.scores)
        for cell, tables in scores.items():
            storage.write_table(f"{output}/{cell}/{unit.name}.parquet", pa.concat_tables(tables))


def one_process(config: EvaluationConfig, cores: int) -> float:
    """Images a second of one process that does the same with a thread a core."""
    compute_on_cpus(cores)
    source = source_of(config)
    evaluator = Evaluator(build_grid(config, source.name, source.rows), "cpu")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as output:
        score(evaluator, units_of(source, ROWS), output)
    return source.rows / (time.perf_counter() - started)


def process_per_core(config: EvaluationConfig, cores: int) -> float:
    """Images a second of a process a core, each of which does its share of the units."""
    context = multiprocessing.get_context("spawn")
    barrier, clocks = context.Barrier(cores), context.SimpleQueue()
    with tempfile.TemporaryDirectory() as output:
        arguments = [(config, share, cores, output, barrier, clocks) for share in range(cores)]
        processes = [context.Process(target=_score_share, args=own) for own in arguments]
        for process in processes:
            process.start()
        started, ended = zip(*(clocks.get() for _ in processes), strict=True)
        for process in processes:
            process.join()
    return source_of(config).rows / (max(ended) - min(started))


def _score_share(
    config: EvaluationConfig,
    share: int,
    shares: int,
    output: str,
    barrier: Barrier,
    clocks: multiprocessing.SimpleQueue[tuple[float, float]],
) -> None:
    """Do every so many-th unit with one thread; tell when the first was begun, once all processes are ready, and when
    the last was done."""
    compute_on_cpus(1)
    source = source_of(config)
    evaluator = Evaluator(build_grid(config, source.name, source.rows), "cpu")
    barrier.wait()
    started = time.time()
    score(evaluator, units_of(source, ROWS)[share::shares], output)
    clocks.put((started, time.time()))


def main() -> None:
    """Measure in turns and print the JSON object."""
    parser = _harness.arguments(__doc__)
    parser.add_argument("--data", default="mnist", help="dataset of 28x28 grey images")
    parser.add_argument("--limit", type=int, default=10_000, help="images")
    parser.add_argument("--turns", type=int, default=3, help="the figures are medians of so many; one with PGD")
    options = parser.parse_args()
    limit, turns = (1_000, 1) if options.quick else (options.limit, options.turns)
    cores = len(os.sched_getaffinity(0))
    results = []
    for attack, repeats in (("none", turns), ("pgd,steps=10", max(1, turns - 2))):
        config = EvaluationConfig(
            data=options.data,
            limit=limit,
            classifiers=("weights/mnist/a_net",),
            purifiers=("weights/mnist/cru_net-a_net",),
            attacks=(attack,),
        )
        contestants = {
            "fused": lambda config=config: pipeline(config, cores),
            "stages apart": lambda config=config: pipeline(config, 1, StagePools(stages="apart")),
            "one process, all cores": lambda config=config: one_process(config, cores),
            "one process a core": lambda config=config: process_per_core(config, cores),
        }
        turned = [{name: run() for name, run in contestants.items()} for _ in range(repeats)]
        rates = {name: statistics.median(turn[name] for turn in turned) for name in contestants}
        baseline = max(("one process, all cores", "one process a core"), key=rates.__getitem__)
        for form in ("fused", "stages apart"):
            compared = rates[form], rates[baseline], baseline, limit
            results.append(_harness.result(f"{attack}, {form}", "images/s", *compared, turns=repeats))
    _harness.report("pipeline", results, packages=("torch", "ray"))


if __name__ == "__main__":
    main()
