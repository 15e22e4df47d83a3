"""Certificates: units of rows go through noise, purify and classify, draw by draw, and the votes are added up."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raypurify import models, runs, storage
from raypurify.data import Source, narrowed, open_source, read_rows, shape_of
from raypurify.evaluation import certification, preflight, units
from raypurify.evaluation.certification import Cell, CertificationConfig, Smoothed
from raypurify.evaluation.units import Unit
from raypurify.jobs import rows
from raypurify.jobs.attempt import FINISHED, Attempt, attempt_at, check_rejects, hold
from raypurify.jobs.engine import engine_of
from raypurify.jobs.resources import ActorPool
from raypurify.jobs.rows import Process, RowWork
from raypurify.jobs.work import Todo, undone
from raypurify.report import certificates, formats
from raypurify.runs import lease, log, schema
from raypurify.runs.log import LogFlags
from raypurify.runs.progress import print_table
from raypurify.training import Batch, batch_of

ROWS = 32
"""Rows of a unit at most: each has many draws."""
PART = 1000
"""Draws of an image that are made, and written, together."""
GUESS = "guess"
TRIED = 4
"""Images that a dry run tries."""


@dataclass(frozen=True, kw_only=True)
class CertificationArguments:
    """Flags of the certification job."""

    certification: CertificationConfig
    resources: ActorPool = field(default_factory=ActorPool)
    destination: runs.Destination
    log: LogFlags = field(default_factory=LogFlags)
    max_rejects: float = 0.1
    """Stop when more than this share of the images cannot be decoded. It is in [0, 1]; with 1 the run never stops."""
    dry_run: bool = False
    """Draw a few times, estimate the time, and write nothing."""

    def __post_init__(self) -> None:
        runs.check_max_rejects(self.max_rejects)


def main(arguments: CertificationArguments) -> None:
    """Certify how far, in L2, no attacker can change a smoothed classifier's answers, on Ray or with --local."""
    if arguments.dry_run:
        print_table(pa.Table.from_pylist([dry_run(arguments.certification, arguments.resources)]))
        return
    summary = run(arguments)
    print_table(certificates.by_radius(summary))
    log.tell(f"report: {storage.join(storage.absolute(arguments.destination.output), 'report.html')}")


def run(arguments: CertificationArguments) -> pa.Table:
    """:func:`certify`, by its flags."""
    return certify(
        arguments.certification,
        arguments.resources,
        max_rejects=arguments.max_rejects,
        **asdict(arguments.destination),
    )


def certify(
    config: CertificationConfig,
    resources: ActorPool,
    output: str,
    *,
    max_rejects: float = 1.0,
    overwrite: bool = False,
    shared_filesystem: bool = False,
) -> pa.Table:
    """Certify every image in each cell, and write the run's folder; draws what is not there yet.

    Args:
        config: what is certified.
        resources: who does it.
        output: URL of the run's folder. Given again with other networks or noise, it holds their cells too.
        max_rejects: share of the images, in [0, 1]; when more cannot be decoded the work stops.
        overwrite: start afresh.
        shared_filesystem: a local output is one that every host sees.

    Returns:
        The summary (``schema.CERTIFIED``) of this call's cells; ``summary.parquet`` also holds those of earlier calls.

    Raises:
        ValueError, FileNotFoundError: bad input, or an output that belongs to another run, or that one writes to.
        StoppedError: too many rejects.
        RuntimeError: images that are neither certified nor rejected.
    """
    output = storage.absolute(output)
    config, source, cells, about, warnings = _prepare(config)
    size = units.rows_of_unit(output, source.rows, overwrite=overwrite, largest=ROWS)
    identity = _identity(config, source.fingerprint, size)
    with hold([resources], output, identity, overwrite=overwrite, shared_filesystem=shared_filesystem) as run:
        batch = resources.batch_for(shape_of(source))
        work = Certification(config=config, cells=cells, output=output, batch=batch)
        todo = undone(work, planned := units.units_of(source, size))
        if run.finished and not todo:
            log.tell(FINISHED)
            return _summary(work, source.name)
        log.tell(*preflight.told(about, warnings))
        run.counts.update(warnings=warnings, images=source.rows, marks=len(work.marks), shape=[*shape_of(source)])
        with attempt_at(run, resources, work, asdict(config), shared_filesystem=shared_filesystem) as attempt:
            parts = _apart(todo)
            attempt.stream(parts, "certifying", max_rejects)
            if len(parts) > len(todo):
                # Of these units other images can be read than before.
                attempt.stream(undone(work, planned), "certifying", max_rejects)
            run.counts["rejected"] = rejected = rows.rejected(output)
            check_rejects(output, rejected, source.rows, max_rejects)
            run.check()
            _add_up(work, planned)
            _attack(work, attempt, planned)
            summary = _conclude(work, source, rejected)
        certificates.write_report(output)
        run.finish()
    return summary


def dry_run(config: CertificationConfig, resources: ActorPool) -> dict[str, Any]:
    """Draw of a few images, in this process, and estimate the time; nothing is written.

    Raises:
        ValueError: bad input, or a cluster that is joined, and is too small.
    """
    config, source, cells, about, warnings = _prepare(config)
    log.tell(*preflight.told(about, warnings))
    engine_of(resources).check_room(resources.needs)
    resources.set_threads()
    device = resources.device if torch.cuda.is_available() else "cpu"
    tried = narrowed(source, np.arange(min(TRIED, source.rows)))
    pieces = [read_rows(shard, 0, shard.rows) for shard in tried.shards]
    smoothed = Smoothed(cells[0], config, device, resources.batch_for(shape_of(source)))
    for draws in (10, certification.BLOCK):
        began = time.perf_counter()
        for ids, images, labels in units.batches_of(pieces, resources.batch_for):
            smoothed.votes(batch_of(images, labels, (), device).x, ids, GUESS, 0, draws)
        rate = draws * tried.rows / (time.perf_counter() - began) * resources.needs.count
    total = source.rows * (config.draws + config.guesses) * len(cells)
    return {
        "images": source.rows,
        "cells": len(cells),
        "actors": resources.needs.told(),
        "draws": total,
        "draws_per_second": rate,
        "estimated": formats.duration(total / rate) + (" at most" if config.procedure == "sequential" else ""),
    }


def _prepare(
    config: CertificationConfig,
) -> tuple[CertificationConfig, Source, tuple[Cell, ...], str, list[str]]:
    """Open the data and the networks, and hold them against each other: a line on the data, and warnings."""
    classifiers = [models.load("classifier", text) for text in config.classifiers]
    purifiers = [models.load("purifier", text) for text in config.purifiers]
    source = open_source(config.data, split=config.split, limit=config.limit, view=config.view)
    if config.every > 1:
        source = narrowed(source, np.arange(0, source.rows, config.every))
    source = preflight.as_trained(source, config.view, classifiers)
    config = replace(config, view=source.view)
    networks = [*classifiers, *purifiers]
    source, about, warnings = preflight.checked(config.data, source, networks, job="certificates", done="certified")
    cells = tuple(
        Cell(classifier=classifier, purifier=purifier, sigma=sigma)
        for classifier in classifiers
        for purifier in purifiers
        for sigma in config.sigmas
    )
    return config, source, cells, about, [*warnings, *preflight.trained_on(source, networks)]


def _identity(config: CertificationConfig, dataset: str, unit: int) -> dict[str, Any]:
    """What may not differ between calls on one output; the cells may."""
    own = ("classifiers", "purifiers", "sigmas", "view")
    identity = {name: value for name, value in asdict(config).items() if name not in own}
    identity["radii"] = list(config.radii)
    if config.procedure == "fixed":
        del identity["radii"]
    marks = "votes" if config.procedure == "fixed" else "certificates"
    return {**identity, **config.view.given, "dataset": dataset, "unit": unit, "marks": marks}


def _apart(todo: Sequence[Todo[Unit]]) -> list[Todo[Unit]]:
    """Units in parts, one for each mark that they lack: the draws of few images spread over many actors."""
    return [
        (replace(unit, part=part, parts=len(marks)), frozenset([mark]))
        for unit, marks in todo
        for part, mark in enumerate(sorted(marks))
    ]


@dataclass(frozen=True, kw_only=True)
class Certification(RowWork):
    """Certificates, as every actor knows them: votes of some draws, or, drawn until they are decided, certificates."""

    config: CertificationConfig
    cells: tuple[Cell, ...]
    batch: int
    """Images that go through the networks at once."""

    @property
    def columns(self) -> pa.Schema:
        """The schema of votes, or of certificates."""
        return schema.VOTES if self.config.procedure == "fixed" else schema.CERTIFICATES

    @property
    def parts(self) -> dict[str, tuple[int, int]]:
        """First draw, and how many draws, by the names of the parts that the draws of an image are made in."""
        draws = {
            f"{first:07d}": (first, min(PART, self.config.draws - first)) for first in range(0, self.config.draws, PART)
        }
        return {GUESS: (0, self.config.guesses), **draws}

    @property
    def marks(self) -> dict[str, str]:
        """Folders of the cells, and of their parts where draws are made in parts."""
        if self.config.procedure == "sequential":
            return {cell.hash: _certificates(self.output, cell) for cell in self.cells}
        return {
            f"{cell.hash}/{part}": storage.join(self.output, "votes", f"cell={cell.hash}", f"draws={part}")
            for cell in self.cells
            for part in self.parts
        }

    @property
    def attacked(self) -> AbstractSet[str]:
        """None: there is no attack."""
        return frozenset()

    def process(self, device: str) -> Process:
        """Votes, or certificates, of a batch."""
        by_hash = {cell.hash: cell for cell in self.cells}
        networks: dict[str, Smoothed] = {}

        def process(
            batch: Batch, ids: Sequence[str], marks: AbstractSet[str], made: Any
        ) -> Iterator[tuple[str, pa.Table]]:
            for mark in sorted(marks):
                cell, _, part = mark.partition("/")
                if cell not in networks:
                    networks.clear()
                    networks[cell] = Smoothed(by_hash[cell], self.config, device, self.batch)
                yield mark, self._table(networks[cell], batch, ids, part)

        return process

    def _table(self, smoothed: Smoothed, batch: Batch, ids: Sequence[str], part: str) -> pa.Table:
        labels = batch.y.tolist()
        if not part:
            decided = [
                {"id": name, **certification.decided(smoothed, x, name, label)}
                for x, name, label in zip(batch.x, ids, labels, strict=True)
            ]
            return pa.Table.from_pylist(decided, self.columns)
        kind = GUESS if part == GUESS else "count"
        votes = smoothed.votes(batch.x, ids, kind, *self.parts[part]).tolist()
        return pa.table([list(ids), labels, votes], schema=self.columns)


def _certificates(output: str, cell: Cell) -> str:
    return storage.join(output, "certificates", f"cell={cell.hash}")


def _attacks(output: str, cell: Cell) -> str:
    return storage.join(output, "attacked", f"{cell.hash}.parquet")


def _add_up(work: Certification, planned: Sequence[Unit]) -> None:
    """Write certificates, once all votes are there."""
    for cell in work.cells if work.config.procedure == "fixed" else ():
        for unit in planned:
            url = storage.join(_certificates(work.output, cell), f"{unit.name}.parquet")
            storage.write_table(url, _added_up(work, cell, unit.name))


def _attack(work: Certification, attempt: Attempt, planned: Sequence[Unit]) -> None:
    """Hold some certificates of each cell against an attack, where that was not done before."""
    todo = [cell for cell in work.cells if not storage.exists(_attacks(work.output, cell))]
    shared = (work, attempt.pool, attempt.run.id, planned)
    attempt.engine.map(attempt.pool.needs, attack_certified, shared, todo if work.config.attack_images else [])


def attack_certified(work: Certification, actors: ActorPool, attempt: str, planned: Sequence[Unit], cell: Cell) -> None:
    """Attack the certified images of a cell that the seed picks, while the attempt of this id holds the output."""
    actors.set_threads()
    table = storage.read_tables(storage.list_files(_certificates(work.output, cell), ".parquet"), schema.CERTIFICATES)
    safe = [row for row in table.to_pylist() if row["right"] and row["radius"] > 0]
    chosen = {row["id"]: row for row in certification.picked(safe, work.config)}
    smoothed = Smoothed(cell, work.config, actors.device, work.batch)
    made = []
    for unit in planned if chosen else ():
        for ids, images, labels in units.batches_of(unit.read(), actors.batch_for):
            for row, name in enumerate(ids):
                if name in chosen:
                    x = batch_of(images[row : row + 1], labels[row : row + 1], (), actors.device).x[0]
                    one = chosen[name]
                    made.append(certification.attacked(smoothed, x, name, one["guess"], one["radius"]))
    lease.check(work.output, attempt)
    storage.write_table(_attacks(work.output, cell), pa.Table.from_pylist(made, schema.ATTACKED_CERTIFICATES))


def _conclude(work: Certification, source: Source, rejected: int) -> pa.Table:
    """Write the summary, once all certificates are there, and some of them were attacked.

    Raises:
        RuntimeError: images that are neither certified nor rejected, or certificates that an attack broke.
    """
    summary = _summary(work, source.name)
    for row in summary.to_pylist():
        if row["n"] + rejected != source.rows:
            raise RuntimeError(f"{work.output}: {row['n']} certificates and {rejected} rejected, of {source.rows}")
        if certification.is_broken(row["attacked_changed"], row["attacked"], work.config.alpha):
            changed, which = (
                f"{row['attacked_changed']} of {row['attacked']}",
                f"{row['purifier']}, σ = {row['sigma']:g}",
            )
            url = storage.join(work.output, "attacked", f"{row['cell']}.parquet")
            raise RuntimeError(f"an attack within the certified radii changed {changed} answers of {which}: see {url}")
    url = storage.join(work.output, "summary.parquet")
    earlier = storage.read_table(url).to_pylist() if storage.exists(url) else []
    own = {cell.hash for cell in work.cells}
    kept = [row for row in earlier if row["cell"] not in own]
    storage.write_table(url, pa.Table.from_pylist([*kept, *summary.to_pylist()], schema.CERTIFIED))
    return summary


def _added_up(work: Certification, cell: Cell, unit: str) -> pa.Table:
    """Certificates of a unit, from the votes of all its parts."""
    folders = work.marks

    def votes(parts: Iterable[str]) -> tuple[pa.Table, Any]:
        urls = (storage.join(folders[f"{cell.hash}/{part}"], f"{unit}.parquet") for part in parts)
        tables = [storage.read_table(url).sort_by("id") for url in urls]
        return tables[0], sum(np.array(table["votes"].to_pylist(), np.int64) for table in tables)

    table, guesses = votes([GUESS])
    _, counts = votes(part for part in work.parts if part != GUESS)
    made = certification.added_up(table, guesses, counts, work.config.draws, work.config.alpha, cell.sigma)
    return pa.Table.from_pylist(made, schema.CERTIFICATES)


def _summary(work: Certification, dataset: str) -> pa.Table:
    """The summary of the cells, from their certificates."""
    found: list[Mapping[str, Any]] = []
    for cell in work.cells:
        urls = storage.list_files(_certificates(work.output, cell), ".parquet")
        common = {
            "cell": cell.hash,
            "dataset": dataset,
            "classifier": cell.classifier.name,
            "purifier": cell.purifier.name,
            "trivial": bool(getattr(cell.purifier.build(), "trivial", False)),
            "sigma": cell.sigma,
        }
        table = storage.read_tables(urls, schema.CERTIFICATES)
        url = _attacks(work.output, cell)
        attacked = storage.read_table(url).to_pylist() if storage.exists(url) else []
        changed = sum(row["answer"] != row["guess"] for row in attacked)
        common |= {"attacked": len(attacked), "attacked_changed": changed}
        found += [{**common, **row} for row in certification.summarised(table, work.config.radii)]
    return pa.Table.from_pylist(found, schema.CERTIFIED)
