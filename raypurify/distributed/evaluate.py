"""Evaluation on Ray Data: units of rows stream through read, attack, purify, classify and write.

A unit's scores are written one file a cell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from raypurify import models, plugins, runs, storage
from raypurify.data import Rows, Source, check_ids, labels_of, open_source, shape_of
from raypurify.distributed import cluster, units
from raypurify.distributed.units import (
    ActorPool,
    Unit,
    batches_of,
    check_rejects,
    rows_of_unit,
    set_threads,
    stream,
    units_of,
)
from raypurify.evaluation import preflight, results
from raypurify.evaluation.batch import Evaluator, Scored
from raypurify.evaluation.grid import EvaluationConfig, Grid, build_grid, built_metrics
from raypurify.evaluation.masking import FINDINGS, weaknesses
from raypurify.report import write_report
from raypurify.report.page import users_sections
from raypurify.runs import schema
from raypurify.runs.progress import print_table
from raypurify.training import Batch, batch_of


@dataclass(frozen=True, kw_only=True)
class EvaluationArguments:
    """Flags of the evaluation job."""

    evaluation: EvaluationConfig
    resources: ActorPool = field(default_factory=ActorPool)
    destination: runs.Destination
    max_rejects: float = 0.1
    """Stop when more than this share of the images cannot be decoded, in [0, 1]; 1: never."""
    sections: tuple[str, ...] = ()
    """Of the report, beside its own: my_package.module:callable, which takes a raypurify.report.Page and returns
    a raypurify.report.Section."""
    dry_run: bool = False
    """Send 32 images through the whole grid, estimate the time, and write nothing."""

    def __post_init__(self) -> None:
        runs.check_max_rejects(self.max_rejects)
        users_sections(self.sections)


def main(arguments: EvaluationArguments) -> None:
    """Evaluate attack x purifier x classifier on a dataset, streamed by Ray Data; write Parquet tables and a report."""
    if arguments.dry_run:
        print_table(pa.Table.from_pylist([dry_run(arguments.evaluation, arguments.resources)]))
        return
    summary = evaluate(
        arguments.evaluation,
        arguments.resources,
        max_rejects=arguments.max_rejects,
        sections=arguments.sections,
        **dataclasses.asdict(arguments.destination),
    )
    columns = ["setting", "attack", "eps", "victim", "classifier", "purifier", "accuracy_clean", "accuracy_adversarial"]
    columns += ["accuracy_purified", "accuracy_clean_purified"]
    shown = schema.shown(summary.schema).items()
    columns += [name for name, how in shown if how.group == "similarity" and not how.minor]
    columns += ["accuracy_with_detection"] if summary["detection_rate"].null_count < len(summary) else []
    print_table(summary.select(columns))
    for row in summary.filter(pc.is_valid(summary["masking"])).to_pylist():
        for name in row["masking"]:
            print(f"warning: {row['attack']} on {row['victim']}: its figure may flatter the defense: {FINDINGS[name]}")
    for weakness in weaknesses(summary.to_pylist()):
        print(f"warning: {weakness}")
    print(f"report: {storage.join(storage.absolute(arguments.destination.output), 'report.html')}")


def evaluate(
    config: EvaluationConfig,
    resources: ActorPool,
    output: str,
    *,
    max_rejects: float = 1.0,
    sections: Sequence[str] = (),
    overwrite: bool = False,
    shared_filesystem: bool = False,
) -> pa.Table:
    """Evaluate a grid and write the run's folder; computes the cells and units that are not there yet.

    Args:
        config: what is evaluated.
        resources: who does it.
        output: URL of the run's folder.
        max_rejects: share of the images, in [0, 1]; when more cannot be decoded the work stops.
        sections: of the report, beside its own: see :func:`raypurify.report.write_report`.
        overwrite: start afresh.
        shared_filesystem: a local output is one that every host sees.

    Returns:
        The summary (``schema.SUMMARY``) of this call's cells; ``summary.parquet`` also holds those of earlier calls.

    Raises:
        ValueError, FileNotFoundError: bad input, or an output that belongs to another run, or that one writes to.
        StoppedError: too many rejects.
        RuntimeError: images that are neither scored nor rejected.
    """
    output = storage.absolute(output)
    source, grid, about, warnings = _prepare(config, resources)
    coupled = resources.batch if any(group.couples_batch for group in grid.groups) else 0
    unit = rows_of_unit(output, source.rows, coupled=coupled, overwrite=overwrite)
    planned = units_of(source, unit)
    with runs.hold(output, _identity(config, source, unit), overwrite=overwrite) as run:
        earlier = _earlier_cells(output)
        cells = _merged(earlier, grid)
        missing = _missing(output, grid, planned)
        if missing or cells != earlier or not run.finished:
            storage.remove(storage.join(output, storage.SUCCESS))
            _tell(about, warnings)
            hardware = cluster.connect(resources.needs)
            cluster.check_output(output, shared_filesystem=shared_filesystem)
            with run.attempt(hardware, {**dataclasses.asdict(config), **dataclasses.asdict(resources)}):
                storage.write_table(storage.join(output, "cells.parquet"), pa.Table.from_pylist(cells, schema.CELL))
                work = Evaluation(grid=grid, output=output)
                run.counts["warnings"] = warnings
                run.counts.update(stream(work, missing, resources, "evaluating", max_rejects))
                rejects = storage.list_files(storage.join(output, "rejects"), ".parquet")
                run.counts["rejected"] = len(storage.read_tables(rejects, schema.REJECTS))
                check_rejects(output, run.counts["rejected"], source.rows, max_rejects)
                own = {cell.hash for cell in grid.cells}
                scored = source.rows - run.counts["rejected"]
                results.write_summary(output, cells, own, scored, built_metrics(config))
                _write_samples(work, resources, planned)
            write_report(output, curves=_curves(config), sections=sections)
            run.finish()
    summary = storage.read_table(storage.join(output, "summary.parquet"))
    return summary.filter(pc.is_in(summary["cell"], pa.array([cell.hash for cell in grid.cells])))


def dry_run(config: EvaluationConfig, resources: ActorPool) -> dict[str, Any]:
    """What :func:`raypurify.distributed.units.dry_run` tells of an evaluation; lines on the data are printed."""
    source, grid, about, warnings = _prepare(config, resources)
    _tell(about, warnings)

    def start(device: str) -> Callable[[Batch, Sequence[str]], object]:
        evaluator = Evaluator(grid, device)
        return lambda batch, ids: list(evaluator.evaluate(batch.x, batch.y, ids))

    return {"cells": len(grid.cells), **units.dry_run(source, resources, start)}


def _tell(about: str, warnings: Sequence[str]) -> None:
    print("\n".join([about, *(f"warning: {text}" for text in warnings)]))


def _prepare(config: EvaluationConfig, resources: ActorPool) -> tuple[Source, Grid, str, list[str]]:
    """Open the data and the networks, and :func:`checked`: everything that can be wrong, before any work."""
    source = open_source(config.data, split=config.split, limit=config.limit)
    if not source.classes:
        raise ValueError(f"{config.data}: an evaluation needs labels, and these images have none")
    grid = build_grid(config, source.name, source.rows, resources.batch)
    source, about, warnings = checked(grid, source)
    return source, grid, about, warnings


def checked(grid: Grid, source: Source) -> tuple[Source, str, list[str]]:
    """Hold the data against the networks before the work.

    Returns:
        The source with its labels numbered as the classifiers number their classes, a line on it, and warnings.

    Raises:
        ValueError: images, labels or classes that do not fit; names the model.
    """
    source = preflight.matched(source, grid.classifiers)
    labels = labels_of(source)
    check_ids(source)
    shape = shape_of(source)
    stand_ins = () if grid.stand_in is None else (grid.stand_in,)
    networks = (*grid.classifiers, *grid.purifiers)
    for model in (*networks, *stand_ins):
        preflight.check_network(model, source, labels, shape)
    preflight.check_metrics(built_metrics(grid.config), shape)
    warnings = [*preflight.missing_classes(source, labels, "evaluated"), *preflight.trained_on(source, networks)]
    return source, preflight.described(source, labels), warnings


def _identity(config: EvaluationConfig, source: Source, unit: int) -> dict[str, Any]:
    """What may not differ between calls on one output; the cells may: each has a hash of its own."""
    specs = {text: plugins.Spec.parse(text) for text in config.metrics}
    metrics = {text: plugins.source_hash(spec, ()) for text, spec in specs.items()}
    return {
        "data": config.data,
        "split": config.split,
        "limit": config.limit,
        "seed": config.seed,
        "precision": config.precision,
        "dataset": source.fingerprint,
        "unit": unit,
        **({"metrics": metrics} if metrics else {}),
    }


def _earlier_cells(output: str) -> list[dict[str, Any]]:
    url = storage.join(output, "cells.parquet")
    rows: list[dict[str, Any]] = storage.read_table(url).to_pylist() if storage.exists(url) else []
    return rows


def _merged(earlier: Sequence[dict[str, Any]], grid: Grid) -> list[dict[str, Any]]:
    """Rows of ``schema.CELL``: those in the output, then this grid's new ones.

    An earlier cell leaves that reads like one of this grid and is another: its model, or its check, was changed.
    """
    own = {cell.hash: dict(cell.row) for cell in grid.cells}
    described = {_description(row) for row in own.values()}
    kept = [row for row in earlier if row["cell"] in own or _description(row) not in described]
    known = {row["cell"] for row in kept}
    return [own.get(row["cell"], row) for row in kept] + [row for name, row in own.items() if name not in known]


def _description(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """A cell as tables show it."""
    return tuple(row[name] for name in schema.CELL_DESCRIPTION)


def _missing(output: str, grid: Grid, units: Sequence[Unit]) -> list[Unit]:
    """The units with cells that are not scored yet."""
    done: dict[str, set[str]] = {unit.name: set() for unit in units}
    for cell in grid.cells:
        for url in storage.list_files(results.scores_folder(output, cell.hash), ".parquet"):
            done[storage.stem(url)].add(cell.hash)
    wanted = frozenset(cell.hash for cell in grid.cells)
    open_units = (dataclasses.replace(unit, missing=wanted - done[unit.name]) for unit in units)
    return [unit for unit in open_units if unit.missing]


def _scores_of(output: str, cell: str, unit: Unit) -> str:
    return storage.join(results.scores_folder(output, cell), f"{unit.name}.parquet")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What every actor knows: see :class:`raypurify.distributed.units.Work`."""

    grid: Grid
    output: str

    def begin_anew(self, unit: Unit) -> Unit:
        """Without the unit's scores in any cell; those of this grid are missing now."""
        for row in _earlier_cells(self.output):
            storage.remove(_scores_of(self.output, row["cell"], unit))
        return dataclasses.replace(unit, missing=frozenset(cell.hash for cell in self.grid.cells))

    def start(self, pool: ActorPool) -> Scorer:
        """The networks, on the actor's device."""
        return Scorer(self, pool)


class Scorer:
    """Scores units and writes the scores."""

    def __init__(self, work: Evaluation, pool: ActorPool) -> None:
        self.output, self.device, self.batch = work.output, pool.device, pool.batch
        self.evaluator = Evaluator(work.grid, self.device)

    def __call__(self, unit: Unit, pieces: Sequence[Rows]) -> None:
        """Write the scores of the cells that a unit is missing."""
        scores: dict[str, list[pa.Table]] = {cell: [] for cell in unit.missing}
        for ids, images, labels in batches_of(pieces, self.batch):
            batch = batch_of(images, labels, (), self.device)
            for scored in self.evaluator.evaluate(batch.x, batch.y, ids, unit.missing):
                scores[scored.cell.hash].append(scored.scores)
        for cell, tables in scores.items():
            storage.write_table(
                _scores_of(self.output, cell, unit), pa.concat_tables([self.evaluator.schema.empty_table(), *tables])
            )


def _write_samples(work: Evaluation, pool: ActorPool, units: Sequence[Unit]) -> None:
    """Attack a few images once more, which repeats them, and write their pixels for the report."""
    seed = work.grid.config.seed
    chosen = {cell.hash: results.choose_samples(work.output, cell.hash, seed) for cell in work.grid.cells}
    named = {unit.name: unit for unit in units}
    task = ray.remote(num_cpus=pool.cpus_per_actor, num_gpus=pool.gpus_per_actor)(sample)
    ray.get(task.remote(ray.put(work), pool, named, chosen))


def sample(
    work: Evaluation, pool: ActorPool, units: Mapping[str, Unit], chosen: Mapping[str, Sequence[results.Sample]]
) -> None:
    """Write ``samples/`` of each cell."""
    set_threads(pool)
    scorer = work.start(pool)
    coupled = {cell.hash for group in work.grid.groups if group.couples_batch for cell in group.cells}
    for cell, samples in chosen.items():
        kinds = {s.id: s.kind for s in samples}
        tables = []
        for unit in sorted({s.unit for s in samples}):
            for ids, images, labels in _batches_with(units[unit], set(kinds), scorer.batch, whole=cell in coupled):
                batch = batch_of(images, labels, (), scorer.device)
                for scored in scorer.evaluator.evaluate(batch.x, batch.y, ids, {cell}):
                    tables.append(_samples(scored, batch.x, kinds))
        storage.write_table(storage.join(work.output, "samples", f"{cell}.parquet"), pa.concat_tables(tables))


def _batches_with(
    unit: Unit, names: AbstractSet[str], size: int, *, whole: bool
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """The batches that a unit is scored in, of which some ids are in ``names``: ``whole``, or just these rows."""
    for ids, images, labels in batches_of(unit.read(), size):
        rows = [index for index, name in enumerate(ids) if name in names]
        if rows:
            kept = list(range(len(ids))) if whole else rows
            yield [ids[row] for row in kept], images[kept], labels[kept]


def _samples(scored: Scored, x: torch.Tensor, kinds: Mapping[str, str]) -> pa.Table:
    """Of a batch's rows of ``schema.SAMPLES``, those that have a kind."""
    pixels = {"clean": x, "adversarial": scored.x_adv, "purified": scored.x_pure}
    rows = []
    for index, score in enumerate(scored.scores.to_pylist()):
        if score["id"] not in kinds:
            continue
        hwc = {name: images[index].permute(1, 2, 0).float().cpu() for name, images in pixels.items()}
        rows.append(
            {
                **{name: score[name] for name in schema.SAMPLES.names if name in score},
                "cell": scored.cell.hash,
                "kind": kinds[score["id"]],
                "shape": list(hwc["clean"].shape),
                **{name: image.flatten().numpy() for name, image in hwc.items()},
            }
        )
    return pa.Table.from_pylist(rows, schema.SAMPLES)


def _curves(config: EvaluationConfig) -> dict[str, pa.Table]:
    """The loss curves of the purifiers' trainings, where they lie in or beside the checkpoint.

    One that cannot be read is left out with a warning: it must not fail a finished evaluation.
    """
    curves = {}
    for text in config.purifiers:
        url = text.partition(",")[0].rstrip("/")
        if "/" not in url:
            continue
        try:
            for place in (url, url.rpartition("/")[0]):
                curve = storage.join(place, "metrics.parquet")
                if storage.exists(curve):
                    curves[models.load("purifier", text).name] = storage.read_tables([curve], schema.METRICS)
                    break
        except (OSError, ValueError) as error:
            print(f"warning: the report lacks the loss curve of {text}: {error}")
    return curves
