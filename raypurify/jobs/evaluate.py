"""Evaluation: units of rows go through read, attack, purify, classify and write.

A unit's scores are written one file a cell.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raypurify import models, storage
from raypurify.data import Source, open_source, shape_of
from raypurify.evaluation import preflight, results, samples, units
from raypurify.evaluation.attacking import settled
from raypurify.evaluation.batch import Evaluator, Prepared
from raypurify.evaluation.grid import EvaluationConfig, Grid, build_grid, built_metrics, identity_of, left_out
from raypurify.evaluation.masking import FINDINGS, weaknesses
from raypurify.evaluation.units import Unit
from raypurify.jobs import rows
from raypurify.jobs.attempt import FINISHED, Attempt, JobArguments, attempt_at, hold, is_done
from raypurify.jobs.resources import ActorPool, StagePools
from raypurify.jobs.rows import Prepare, Process, RowWork
from raypurify.jobs.work import Todo, undone
from raypurify.report import write_report
from raypurify.report.cells import worst_cases
from raypurify.report.page import users_sections
from raypurify.runs import lease, log, schema
from raypurify.runs.progress import print_table
from raypurify.training.batches import Batch


@dataclass(frozen=True, kw_only=True)
class EvaluationArguments(JobArguments):
    """Flags of the evaluation job."""

    evaluation: EvaluationConfig
    resources: ActorPool = field(default_factory=ActorPool)
    pools: StagePools = field(default_factory=StagePools)
    sections: tuple[str, ...] = ()
    """Sections that the report has beside its own: my_package.module:callable each. The callable takes a
    raypurify.report.Page and returns a raypurify.report.Section."""
    dry_run: bool = False
    """Send 32 images through the whole grid, estimate the time, and write nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        users_sections(self.sections)


def main(arguments: EvaluationArguments) -> None:
    """Evaluate attack x purifier x classifier on a dataset, on Ray or with --local: Parquet tables and a report."""
    if arguments.dry_run:
        print_table(pa.Table.from_pylist([dry_run(arguments.evaluation, arguments.resources)]))
        return
    summary = run(arguments)
    columns = ["setting", "attack", "eps", "victim", "classifier", "purifier", "accuracy_clean", "accuracy_adversarial"]
    columns += ["accuracy_purified", "accuracy_clean_purified"]
    shown = schema.shown(summary.schema).items()
    columns += [name for name, how in shown if how.group == "similarity" and not how.minor]
    columns += ["accuracy_with_detection"] if summary["detection_rate"].null_count < len(summary) else []
    columns += ["accuracy_worst"] if worst_cases(summary.to_pylist()) else []
    print_table(summary.select(columns))
    for row in summary.filter(pc.is_valid(summary["masking"])).to_pylist():
        for name in row["masking"]:
            doubt = f"its figure may flatter the defense: {FINDINGS[name]}"
            log.tell(f"warning: {row['attack']} on {row['victim']}: {doubt}")
    for weakness in weaknesses(summary.to_pylist()):
        log.tell(f"warning: {weakness}")
    log.tell(f"report: {storage.join(storage.absolute(arguments.destination.output), 'report.html')}")


def run(arguments: EvaluationArguments) -> pa.Table:
    """:func:`evaluate`, by its flags."""
    return evaluate(
        arguments.evaluation,
        arguments.resources,
        pools=arguments.pools.apart(arguments.resources),
        sections=arguments.sections,
        **arguments.usual,
    )


def evaluate(
    config: EvaluationConfig,
    resources: ActorPool,
    output: str,
    *,
    pools: Mapping[str, ActorPool] | None = None,
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
        pools: of the stages attack and purify, where they run apart: see :class:`StagePools`.
        max_rejects: share of the images, in [0, 1]; when more cannot be decoded the work stops.
        sections: sections that the report has beside its own: see :func:`raypurify.report.write_report`.
        overwrite, shared_filesystem: see :class:`raypurify.runs.Destination`.

    Returns:
        The summary (``schema.SUMMARY``) of this call's cells; ``summary.parquet`` also holds those of earlier calls.

    Raises:
        ValueError, FileNotFoundError: bad input, or an output that belongs to another run, or that one writes to.
        StoppedError: too many rejects.
        RuntimeError: images that are neither scored nor rejected.
    """
    output = storage.absolute(output)
    source, grid, about, warnings = _prepare(config, resources)
    size = rows.unit_size(output, source, resources, pools, coupled=grid.coupled, overwrite=overwrite)
    who, identity = [resources, *(pools or {}).values()], identity_of(grid.config, source.fingerprint, size)
    with hold(who, output, identity, overwrite=overwrite, shared_filesystem=shared_filesystem) as run:
        cells = results.merged_cells(earlier := results.earlier_cells(output), grid)
        work = Evaluation(grid=grid, output=output, known=tuple(row["cell"] for row in cells), pools=pools or {})
        todo = undone(work, planned := units.units_of(source, size))
        if is_done(run, todo, lambda: cells == earlier):
            log.tell(FINISHED)
        else:
            log.tell(*preflight.told(about, warnings))
            run.counts.update(warnings=warnings, images=source.rows, **source.named_classes)
            with attempt_at(run, resources, work, asdict(config), shared_filesystem=shared_filesystem) as attempt:
                _score(work, attempt, cells, todo, planned, max_rejects)
                _conclude(work, attempt, cells, planned, max_rejects)
            write_report(output, curves=results.curves(config), sections=sections)
            run.finish()
    return results.read_summary(output, [cell.hash for cell in grid.cells])


def _score(
    work: Evaluation,
    attempt: Attempt,
    cells: Sequence[Mapping[str, Any]],
    todo: Sequence[Todo[Unit]],
    planned: Sequence[Unit],
    max_rejects: float,
) -> None:
    """Write which cells there are, and do what is missing: see :meth:`raypurify.jobs.attempt.Attempt.stream`."""
    storage.write_table(storage.join(work.output, "cells.parquet"), pa.Table.from_pylist(cells, schema.CELL))
    parts = spread(todo, work.grid, max(pool.most for pool in (attempt.pool, *work.stages.values())))
    attempt.stream(parts, "evaluating", max_rejects)
    if len(parts) > len(todo):
        # Of these units other images can be read than before.
        attempt.stream(undone(work, planned), "evaluating", max_rejects)


def spread(todo: Sequence[Todo[Unit]], grid: Grid, actors: int) -> list[Todo[Unit]]:
    """Units in parts, each of some cells, where there are fewer units than actors: else some of these would be idle.

    Args:
        todo: units, and the hashes of the cells that they lack.
        grid: that of the cells.
        actors: how many there may be.
    """
    parts = []
    for unit, cells in todo:
        dealt = grid.dealt(cells, math.ceil(actors / len(todo)))
        parts += [(replace(unit, part=part, parts=len(dealt)), own) for part, own in enumerate(dealt)]
    return parts


def _conclude(
    work: Evaluation,
    attempt: Attempt,
    cells: Sequence[Mapping[str, Any]],
    planned: Sequence[Unit],
    max_rejects: float,
) -> None:
    """Write the summary and the samples, once all units are done.

    Raises:
        StoppedError: too many rejects.
        RuntimeError: images that are neither scored nor rejected.
    """
    images = sum(unit.images for unit in planned)
    rejected = attempt.judge(images, max_rejects)
    attempt.run.check()
    results.write_summary(work.output, cells, set(work.marks), images - rejected, built_metrics(work.grid.config))
    _write_samples(work, attempt, planned)


def dry_run(config: EvaluationConfig, resources: ActorPool) -> dict[str, Any]:
    """What :func:`raypurify.jobs.rows.dry_run` tells of an evaluation; lines on the data are printed."""
    source, grid, about, warnings = _prepare(config, resources)
    log.tell(*preflight.told(about, warnings))
    return {"cells": len(grid.cells), **rows.dry_run(source, resources, Evaluation(grid=grid, output=""))}


def _prepare(config: EvaluationConfig, resources: ActorPool) -> tuple[Source, Grid, str, list[str]]:
    """Open the data and the networks, and hold them against each other: a line on the data, and warnings."""
    classifiers = [models.load("classifier", text) for text in config.classifiers]
    source = open_source(config.data, split=config.split, limit=config.limit, view=config.view)
    source = preflight.as_trained(source, config.view, classifiers)
    precision = settled(config.attack_precision, resources.device)
    config = replace(config, view=source.view, attack_precision=precision)
    grid = build_grid(config, source.name, source.rows, resources.batch_for(shape_of(source)), classifiers)
    networks = (*grid.classifiers, *grid.purifiers)
    stand_ins = () if grid.stand_in is None else (grid.stand_in,)
    source, about, warnings = preflight.checked(
        config.data, source, (*networks, *stand_ins), job="an evaluation", done="evaluated"
    )
    preflight.check_metrics(built_metrics(config), shape_of(source))
    return source, grid, about, [*warnings, *left_out(grid), *preflight.trained_on(source, networks)]


@dataclass(frozen=True, kw_only=True)
class Evaluation(RowWork):
    """An evaluation, as every actor knows it: a table of scores for each cell."""

    grid: Grid
    known: tuple[str, ...] = ()
    """Hashes of all cells of the output, those of earlier calls too."""
    pools: Mapping[str, ActorPool] = field(default_factory=dict)
    """The pools of the stages attack and purify, where they run apart."""

    @property
    def stages(self) -> Mapping[str, ActorPool]:
        """Those of ``pools``."""
        return self.pools

    @property
    def marks(self) -> dict[str, str]:
        """The folders of this grid's cells, by their hashes."""
        return {cell.hash: results.scores_folder(self.output, cell.hash) for cell in self.grid.cells}

    @property
    def attacked(self) -> AbstractSet[str]:
        """The hashes of this grid's cells with an attack."""
        return {cell.hash for group in self.grid.groups if group.attack.name != "none" for cell in group.cells}

    @property
    def columns(self) -> pa.Schema:
        """The schema of the scores."""
        return schema.scores(built_metrics(self.grid.config))

    def earlier(self) -> Iterable[str]:
        """The folders of all cells."""
        return (results.scores_folder(self.output, cell) for cell in self.known)

    def process(self, device: str) -> Process:
        """Scores of a batch in each of some cells."""
        evaluator = Evaluator(self.grid, device)

        def process(
            batch: Batch, ids: Sequence[str], cells: AbstractSet[str], prepared: Prepared | None
        ) -> Iterator[tuple[str, pa.Table]]:
            for scored in evaluator.evaluate(batch.x, batch.y, ids, cells, prepared):
                yield scored.cell.hash, scored.scores

        return process

    def prepare(self, stage: str, device: str) -> Prepare:
        """Attacked or purified images of a batch."""
        evaluator = Evaluator(self.grid, device)
        return lambda batch, ids, cells, prepared: evaluator.prepare(stage, batch.x, batch.y, ids, cells, prepared)


def _write_samples(work: Evaluation, attempt: Attempt, units: Sequence[Unit]) -> None:
    """Write ``samples/`` of each cell, where there is what an actor needs: as many parts of the grid at once as there
    are actors."""
    grid, pool = work.grid, attempt.pool
    dealt = grid.dealt(frozenset(cell.hash for cell in grid.cells), pool.most)
    chosen = [{cell: samples.choose(work.output, cell, grid.config.seed) for cell in sorted(cells)} for cells in dealt]
    shared = (work, pool, attempt.run.id, units)
    deque(attempt.map(write_samples, shared, chosen, "writing samples", "parts"), maxlen=0)


def write_samples(
    work: Evaluation,
    actors: ActorPool,
    attempt: str,
    units: Sequence[Unit],
    chosen: Mapping[str, Sequence[samples.Sample]],
) -> None:
    """Attack the chosen images of each cell once more, and write them while the attempt of this id holds the output."""
    actors.set_threads()
    evaluator = Evaluator(work.grid, actors.device)
    for cell, wanted in chosen.items():
        table = samples.made(evaluator, cell, units, wanted, actors.batch_for)
        lease.check(work.output, attempt)
        storage.write_table(storage.join(work.output, "samples", f"{cell}.parquet"), table)
