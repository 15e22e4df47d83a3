"""The Ray Data pipeline against a bare loop in one process: the same images, networks, figures and Parquet files.

Both attack, purify, classify, score and write. The loop may use all cores in its networks' arithmetic. Start-up of Ray
and of its actors is left out: the clock runs from the first image to the last.
"""

from __future__ import annotations

import statistics
import tempfile
import time

import _harness
import pyarrow as pa

from raypurify import storage
from raypurify.data import open_source, read_rows
from raypurify.evaluation.batch import Evaluator
from raypurify.evaluation.grid import EvaluationConfig, build_grid
from raypurify.evaluation.units import batches_of, units_of
from raypurify.jobs.evaluate import evaluate
from raypurify.jobs.resources import ActorPool, StagePools
from raypurify.training import batch_of

BATCH = 250


def pipeline(config: EvaluationConfig, actors: int, stages: StagePools | None = None) -> float:
    """Images a second of the Ray pipeline, by its own ``run.json``; ``stages``: with pools of their own."""
    pool = ActorPool(actors=actors, cpus_per_actor=1, batch=BATCH)
    with tempfile.TemporaryDirectory() as output:
        evaluate(config, pool, output + "/run", pools={} if stages is None else stages.apart(pool))
        run = storage.read_json(output + "/run/run.json")
    return float(run["attempts"][0]["counts"]["images_per_second"])


def bare_loop(config: EvaluationConfig) -> float:
    """Images a second of one process that does the same with all cores."""
    source = open_source(config.data, split=config.split, limit=config.limit)
    evaluator = Evaluator(build_grid(config, source.name, source.rows), "cpu")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as output:
        for unit in units_of(source, 500):
            pieces = [read_rows(piece.shard, piece.start, piece.stop) for piece in unit.pieces]
            scores: dict[str, list[pa.Table]] = {}
            for ids, images, labels in batches_of(pieces, BATCH):
                batch = batch_of(images, labels, (), "cpu")
                for scored in evaluator.evaluate(batch.x, batch.y, ids):
                    scores.setdefault(scored.cell.hash, []).append(scored.scores)
            for cell, tables in scores.items():
                whole = pa.concat_tables(tables)
                storage.write_table(f"{output}/{cell}/{unit.name}.parquet", whole)
    return source.rows / (time.perf_counter() - started)


def main() -> None:
    """Measure in turns and print the JSON object."""
    parser = _harness.arguments(__doc__)
    parser.add_argument("--data", default="mnist", help="dataset of 28x28 grey images")
    parser.add_argument("--actors", type=int, default=2, help="actors of one CPU each")
    options = parser.parse_args()
    limit, turns = (1_000, 1) if options.quick else (10_000, 3)
    results = []
    for name, attack, repeats in (
        ("without the attack", "none", turns),
        ("with PGD", "pgd,steps=10", max(1, turns - 2)),
    ):
        config = EvaluationConfig(
            data=options.data,
            limit=limit,
            classifiers=("weights/mnist/a_net",),
            purifiers=("weights/mnist/cru_net-a_net",),
            attacks=(attack,),
        )
        ours, theirs = [], []
        for _ in range(repeats):
            ours.append(pipeline(config, options.actors))
            theirs.append(bare_loop(config))
        median, baseline = statistics.median(ours), statistics.median(theirs)
        results.append(
            _harness.result(name, "images/s", median, baseline, "bare torch loop, all cores", limit, turns=repeats)
        )
    # One core each attacks and purifies; what is left to classify is little.
    apart = pipeline(config, 1, StagePools(stages="apart"))
    results.append(_harness.result("with PGD, stages apart", "images/s", apart, median, "stages fused", limit))
    _harness.report("pipeline", results, packages=("torch", "ray"))


if __name__ == "__main__":
    main()
