"""Certificates: units of rows go through noise, purify and classify, draw by draw, and the votes are added up."""

from __future__ import annotations

import functools
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raypurify import models, storage
from raypurify.data import Source, narrowed, open_source, read_rows, shape_of
from raypurify.evaluation import certificate_attacks, certification, preflight, units
from raypurify.evaluation.certification import CertificationConfig, CertifiedCell, Smoothed
from raypurify.evaluation.grid import check_names
from raypurify.evaluation.units import Unit
from raypurify.jobs.attempt import FINISHED, Attempt, JobArguments, attempt_at, count_rejects, hold, is_done
from raypurify.jobs.engine import engine_of
from raypurify.jobs.resources import ActorPool
from raypurify.jobs.rows import Process, RowWork
from raypurify.jobs.work import Todo, undone
from raypurify.report import certificates, formats
from raypurify.runs import lease, log, schema
from raypurify.runs.progress import print_table
from raypurify.training.batches import Batch, batch_of

ROWS = 32
"""Rows of a unit at most: each has many draws."""
PART = 1000
"""Draws of an image that are made, and written, together."""
GUESS = "guess"
TRIED = 4
"""Images that a dry run tries."""
SHOWN = 6
"""Images of each cell that the report shows."""
ADDED = 16
"""Units of a cell whose votes are added up together."""
ATTACKED = 4
"""Certificates of a cell that are attacked together."""


@dataclass(frozen=True, kw_only=True)
class CertificationArguments(JobArguments):
    """Flags of the certification job."""

    certification: CertificationConfig
    resources: ActorPool = field(default_factory=ActorPool)
    dry_run: bool = False
    """Draw a few times, estimate the time, and write nothing."""


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
        **arguments.usual,
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
        overwrite, shared_filesystem: see :class:`raypurify.runs.Destination`.

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
    identity = _identity(config, source.fingerprint, size, resources.device)
    with hold([resources], output, identity, overwrite=overwrite, shared_filesystem=shared_filesystem) as run:
        batch = resources.batch_for(shape_of(source))
        work = Certification(config=config, cells=cells, output=output, batch=batch)
        todo = undone(work, planned := units.units_of(source, size))
        if is_done(run, todo, lambda: not _unshown(work)) and (told := _earlier_summary(work)) is not None:
            log.tell(FINISHED)
            return told
        log.tell(*preflight.told(about, warnings))
        run.counts.update(warnings=warnings, images=source.rows, shape=[*shape_of(source)])
        run.counts.update(cells=[cell.hash for cell in cells], marks=len(work.marks))
        with attempt_at(run, resources, work, asdict(config), shared_filesystem=shared_filesystem) as attempt:
            _draw(work, attempt, todo, planned, max_rejects)
            _add_up(work, attempt, planned)
            _show(work, attempt, planned)
            run.check()
            summary = _conclude(work, source, planned)
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
    batch = resources.batch_for(shape_of(source))
    smoothed = Smoothed(cells[0].placed(device), cells[0].sigma, config, device, batch)
    for draws in (10, certification.BLOCK):
        began = time.perf_counter()
        for ids, images, labels in units.batches_of(pieces, resources.batch_for):
            smoothed.votes(batch_of(images, labels, (), device).x, ids, GUESS, 0, draws)
        rate = draws * tried.rows / (time.perf_counter() - began) * resources.needs.count
    drawn = min(config.attack_images, source.rows)
    attacked = drawn * certificate_attacks.ATTACKS * certificate_attacks.ATTACK_COST
    total = len(cells) * (source.rows * (config.draws + config.guesses) + attacked)
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
) -> tuple[CertificationConfig, Source, tuple[CertifiedCell, ...], str, list[str]]:
    """Open the data and the networks, and hold them against each other: a line on the data, and warnings."""
    classifiers = [models.load("classifier", text) for text in config.classifiers]
    purifiers = [models.load("purifier", text) for text in config.purifiers]
    source = open_source(config.data, split=config.split, limit=config.limit, view=config.view)
    if config.every > 1:
        source = narrowed(source, np.arange(0, source.rows, config.every))
    source = preflight.as_trained(source, config.view, classifiers)
    config = replace(config, view=source.view)
    for loaded in (classifiers, purifiers):
        check_names(loaded)
    networks = [*classifiers, *purifiers]
    source, about, warnings = preflight.checked(config.data, source, networks, job="certificates", done="certified")
    cells = tuple(
        CertifiedCell(classifier=classifier, purifier=purifier, sigma=sigma)
        for classifier in classifiers
        for purifier in purifiers
        for sigma in config.sigmas
    )
    return config, source, cells, about, [*warnings, *preflight.trained_on(source, networks)]


def _identity(config: CertificationConfig, dataset: str, unit: int, device: str) -> dict[str, Any]:
    """What may not differ between calls on one output; the cells may. Noise is made on the device, and is its own."""
    own = {"classifiers", "purifiers", "sigmas", "view", "attack_images", "radii"}
    identity = {name: value for name, value in asdict(config).items() if name not in own}
    if config.procedure == "sequential":
        identity["radii"] = list(config.radii)
    marks = "votes" if config.procedure == "fixed" else "certificates"
    identity |= {"dataset": dataset, "unit": unit, "marks": marks, "device": device}
    return {**identity, **config.view.given}


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
    cells: tuple[CertifiedCell, ...]
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

    def earlier(self) -> Iterable[str]:
        """The folders of all cells of the output."""
        for kind in ("votes", "certificates"):
            urls = storage.list_files(storage.join(self.output, kind), ".parquet")
            yield from dict.fromkeys(url.rpartition("/")[0] for url in urls)

    def process(self, device: str) -> Process:
        """Votes, or certificates, of a batch."""
        by_hash = {cell.hash: cell for cell in self.cells}

        @functools.lru_cache(maxsize=1)
        def placed(classifier: str, purifier: str) -> certification.Networks:
            """The networks of these identities: cells that differ in their noise share them."""
            cells = (
                one for one in self.cells if (one.classifier.identity, one.purifier.identity) == (classifier, purifier)
            )
            return next(cells).placed(device)

        def process(
            batch: Batch, ids: Sequence[str], marks: AbstractSet[str], made: Any
        ) -> Iterator[tuple[str, pa.Table]]:
            for mark in sorted(marks):
                name, _, part = mark.partition("/")
                cell = by_hash[name]
                networks = placed(cell.classifier.identity, cell.purifier.identity)
                smoothed = Smoothed(networks, cell.sigma, self.config, device, self.batch)
                yield mark, self._table(smoothed, batch, ids, part)

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


def _certificates(output: str, cell: CertifiedCell) -> str:
    return storage.join(output, "certificates", f"cell={cell.hash}")


def _attacks(output: str, cell: CertifiedCell) -> str:
    return storage.join(output, "attacked", f"{cell.hash}.parquet")


def _samples(output: str, cell: CertifiedCell) -> str:
    return storage.join(output, "samples", f"{cell.hash}.parquet")


def _draw(
    work: Certification, attempt: Attempt, todo: Sequence[Todo[Unit]], planned: Sequence[Unit], max_rejects: float
) -> None:
    """Do what is missing of the draws.

    Raises:
        StoppedError: too many rejects.
    """
    parts = _apart(todo)
    attempt.stream(parts, "certifying", max_rejects)
    if len(parts) > len(todo):
        # Of these units other images can be read than before.
        attempt.stream(undone(work, planned), "certifying", max_rejects)
    attempt.judge(sum(unit.images for unit in planned), max_rejects)


def _add_up(work: Certification, attempt: Attempt, planned: Sequence[Unit]) -> None:
    """Write certificates, once all votes are there."""
    names = [unit.name for unit in planned]
    parts = [
        (number, names[first : first + ADDED])
        for number in range(len(work.cells) if work.config.procedure == "fixed" else 0)
        for first in range(0, len(names), ADDED)
    ]
    deque(attempt.map(add_up, (work, attempt.run.id), parts, "adding up", "parts"), maxlen=0)


def add_up(work: Certification, attempt: str, todo: tuple[int, Sequence[str]]) -> None:
    """Write the certificates of units of a cell, by its number, while the attempt of this id holds the output."""
    number, names = todo
    cell = work.cells[number]
    for unit in names:
        table = _added_up(work, cell, unit)
        lease.check(work.output, attempt)
        storage.write_table(storage.join(_certificates(work.output, cell), f"{unit}.parquet"), table)


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """Certificates of a cell that are looked at closely, each with its unit's name."""

    number: int
    """The cell's, among all of the work, which has its weights."""

    drawn: Sequence[Mapping[str, Any]]
    """Those that are attacked."""
    shown: Sequence[Mapping[str, Any]]
    """Those that the report shows."""


def _show(work: Certification, attempt: Attempt, planned: Sequence[Unit]) -> None:
    """Hold some certificates of each cell against an attack, and keep the pixels of some, where it was not done."""
    cut = [
        [
            replace(one, drawn=one.drawn[first : first + ATTACKED], shown=() if first else one.shown)
            for first in range(0, max(1, len(one.drawn)), ATTACKED)
        ]
        for one in _unshown(work)
    ]
    parts = [part for same in cut for part in same]
    shared = (work, attempt.pool, {unit.name: unit for unit in planned})
    label = "attacking certificates" if any(one.drawn for one in parts) else "keeping samples"
    with closing(attempt.map(show, shared, parts, label, "parts")) as made:
        for same in cut:
            # A cell is written before the next one's first part is waited for.
            done, cell = list(islice(made, len(same))), work.cells[same[0].number]
            attacked, samples = ([row for tables in done for row in tables[kind]] for kind in (0, 1))
            lease.check(work.output, attempt.run.id)
            told = pa.Table.from_pylist(attacked, schema.ATTACKED_CERTIFICATES)
            storage.write_table(_attacks(work.output, cell), told)
            storage.write_table(_samples(work.output, cell), pa.Table.from_pylist(samples, schema.NOISY_SAMPLES))


def _unshown(work: Certification) -> list[_Chosen]:
    """Cells with certificates that have to be attacked or shown, and are not."""
    found = []
    for number, cell in enumerate(work.cells):
        chosen = _chosen(work, number, _certified(work, cell))
        made, url = _attacked(work, cell), _samples(work.output, cell)
        shown = storage.read_table(url)["id"].to_pylist() if storage.exists(url) else []
        is_attacked = certificate_attacks.covers(made, chosen.drawn, work.config.radii)
        if not is_attacked or shown != [row["id"] for row in chosen.shown]:
            found.append(chosen)
    return found


def _attacked(work: Certification, cell: CertifiedCell) -> list[Mapping[str, Any]]:
    """The attacks on certificates of a cell, as they were written."""
    url = _attacks(work.output, cell)
    return storage.read_table(url).to_pylist() if storage.exists(url) else []


def _certified(work: Certification, cell: CertifiedCell) -> pa.Table:
    """All certificates of a cell (``schema.CERTIFICATES``), each with its unit's name in ``unit``."""

    def read(url: str) -> pa.Table:
        table = storage.with_columns(storage.read_table(url), schema.CERTIFICATES)
        return table.append_column("unit", pa.array([storage.stem(url)] * len(table), pa.string()))

    empty = schema.CERTIFICATES.append(pa.field("unit", pa.string())).empty_table()
    with ThreadPoolExecutor(storage.REQUESTS_AT_ONCE) as pool:
        tables = pool.map(read, storage.list_files(_certificates(work.output, cell), ".parquet"))
        return pa.concat_tables([empty, *tables])


def _chosen(work: Certification, number: int, certified: pa.Table) -> _Chosen:
    """The certificates that are held against an attack, and those that are shown: the seed draws them."""
    ordered = certificate_attacks.picked(certified.to_pylist(), work.config)
    return _Chosen(number=number, drawn=ordered[: work.config.attack_images], shown=ordered[:SHOWN])


def show(
    work: Certification, actors: ActorPool, planned: Mapping[str, Unit], chosen: _Chosen
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Attack images of a cell, and sample it: rows of ``ATTACKED_CERTIFICATES``, and of ``NOISY_SAMPLES``."""
    actors.set_threads()
    cell = work.cells[chosen.number]
    smoothed = Smoothed(cell.placed(actors.device), cell.sigma, work.config, actors.device, work.batch)
    images = dict(_images(planned, [*chosen.drawn, *chosen.shown], actors.device))
    attacked = [
        row
        for drawn in chosen.drawn
        for row in certificate_attacks.attacked(smoothed, images[drawn["id"]], drawn, work.config.radii)
    ]
    samples = [
        certification.sample(smoothed, images[row["id"]], row["id"], row["label"])
        | {"guess": row["guess"], "radius": row["radius"]}
        for row in chosen.shown
    ]
    return attacked, samples


def _images(
    planned: Mapping[str, Unit], rows: Sequence[Mapping[str, Any]], device: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """The images of certificates, (C, H, W) float32 in [0, 1], by their ids."""
    wanted = {row["id"] for row in rows}
    for unit in sorted({row["unit"] for row in rows}):
        for ids, pixels, labels in units.batches_of(planned[unit].read(), lambda shape: 1):
            if ids[0] in wanted:
                yield ids[0], batch_of(pixels, labels, (), device).x[0]


def _conclude(work: Certification, source: Source, planned: Sequence[Unit]) -> pa.Table:
    """Write the summary, once all certificates are there, and some of them were attacked.

    Raises:
        RuntimeError: images that are neither certified nor rejected, or certificates that an attack proved wrong.
    """
    summary, rejected = _summary(work, source.name), count_rejects(work.output)
    for row in summary.to_pylist():
        if row["n"] + rejected != source.rows:
            raise RuntimeError(f"{work.output}: {row['n']} certificates and {rejected} rejected, of {source.rows}")
        if certificate_attacks.is_broken(row["attacked_wrong"], row["drawn"], work.config.alpha, len(work.cells)):
            which = f"{row['attacked_wrong']} certificates of {row['purifier']}, σ = {row['sigma']:g}"
            url = storage.join(work.output, "attacked", f"{row['cell']}.parquet")
            raise RuntimeError(f"an attack proved {which}, wrong: see {url}. No figure of this run is to be trusted")
    earlier = _earlier(work)
    # By name, since a cell that was made before its weights changed has another hash.
    own = {(cell.classifier.name, cell.purifier.name, cell.sigma) for cell in work.cells}
    folder = storage.join(work.output, "certificates")
    # Another cell stays as long as it has all its certificates: with other images to read, they are made anew.
    whole = Counter(url.rsplit("/", 2)[-2].removeprefix("cell=") for url in storage.list_files(folder, ".parquet"))
    others = (row for row in earlier if (row["classifier"], row["purifier"], row["sigma"]) not in own)
    kept = [row for row in others if whole[row["cell"]] == len(planned)]
    url = storage.join(work.output, "summary.parquet")
    storage.write_table(url, pa.Table.from_pylist([*kept, *summary.to_pylist()], schema.CERTIFIED))
    return summary


def _earlier(work: Certification) -> list[dict[str, Any]]:
    """Rows of ``summary.parquet``, if it is there."""
    url = storage.join(work.output, "summary.parquet")
    rows: list[dict[str, Any]] = storage.read_tables([url] if storage.exists(url) else [], schema.CERTIFIED).to_pylist()
    return rows


def _earlier_summary(work: Certification) -> pa.Table | None:
    """What ``summary.parquet`` tells of this call's cells and radii; None where it does not tell all."""
    own = [cell.hash for cell in work.cells]
    found = sorted((row for row in _earlier(work) if row["cell"] in own), key=lambda row: own.index(row["cell"]))
    asked = [(cell, radius) for cell in own for radius in work.config.radii]
    told = [(row["cell"], row["radius"]) for row in found] == asked
    return pa.Table.from_pylist(found, schema.CERTIFIED) if told else None


def _added_up(work: Certification, cell: CertifiedCell, unit: str) -> pa.Table:
    """Certificates of a unit, from the votes of all its parts."""
    urls = [storage.join(work.marks[f"{cell.hash}/{part}"], f"{unit}.parquet") for part in work.parts]
    # In the order of the parts, the guesses first; each has the same images.
    table = storage.read_tables(urls, schema.VOTES)
    rows = len(table) // len(urls)
    made: list[dict[str, Any]] = []
    if rows:
        votes = np.array(table["votes"].to_pylist(), np.int64).reshape(len(urls), rows, -1)
        config, own = work.config, table.slice(0, rows)
        counts = votes[1:].sum(axis=0)
        made = certification.added_up(own, votes[0], counts, config.draws, config.alpha, cell.sigma)
    return pa.Table.from_pylist(made, schema.CERTIFICATES)


def _summary(work: Certification, dataset: str) -> pa.Table:
    """The summary of the cells, from their certificates."""
    found: list[Mapping[str, Any]] = []
    for number, cell in enumerate(work.cells):
        common = {
            "cell": cell.hash,
            "dataset": dataset,
            "classifier": cell.classifier.name,
            "purifier": cell.purifier.name,
            "trivial": bool(getattr(cell.purifier.build(), "trivial", False)),
            "sigma": cell.sigma,
        }
        table = _certified(work, cell)
        drawn = _chosen(work, number, table).drawn
        names = {row["id"] for row in drawn}
        made = [row for row in _attacked(work, cell) if row["id"] in names]
        within = [row for row in made if row["at"] <= row["radius"]]
        common |= {
            "drawn": len(drawn),
            "attacked": len(within),
            "attacked_changed": sum(row["answer"] != row["guess"] for row in within),
            "attacked_wrong": sum(map(certificate_attacks.is_wrong, within)),
        }
        for row in certification.summarised(table, work.config.radii):
            found.append({**common, "empirical": certificate_attacks.empirical(made, drawn, row["radius"]), **row})
    return pa.Table.from_pylist(found, schema.CERTIFIED)
