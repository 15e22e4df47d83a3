"""Evaluation on Ray Data: units of rows stream through read, attack, purify, classify and write.

A unit is a fixed run of rows. Its scores are written under a name that follows from the plan, one file a cell, each at
once: a file that is there is whole, a retried unit overwrites itself, and an evaluation that is run again computes what
is missing. The driver sees one small row for each unit, never an image.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from raypurify import evaluation, models, results, runs, schema, storage
from raypurify.data import Rows, Source, open_source, read_rows, shape_of
from raypurify.distributed import cluster, streams
from raypurify.evaluation import EvaluationConfig, Evaluator, Grid, Scored
from raypurify.progress import Progress, print_table
from raypurify.purifiers import purify
from raypurify.report import write_report
from raypurify.training import batch_of

UNIT = 500
"""Rows of a unit: what is written together, and done again when it was cut off."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResources:
    """Who does the work. None of it changes what is computed."""

    actors: int = 1
    """Actors that evaluate; the pool starts with so many."""
    max_actors: int | None = None
    """The pool grows to so many where the cluster has room, or makes room; ``actors`` if none is given."""
    cpus_per_actor: int = 2
    """CPUs, and threads of arithmetic, of an actor."""
    gpus_per_actor: float = 0
    """GPUs of an actor; may be a fraction."""
    read_cpus: float = 0.5
    """CPUs of a task that reads and decodes, where reads run apart."""
    reads: Literal["fused", "apart"] = "fused"
    """fused: an actor reads its own images, best where all share CPUs. apart: tasks on CPUs read and decode ahead, best
    for actors on GPUs."""
    batch: int = 250
    """Images that go through the networks at once."""

    def __post_init__(self) -> None:
        if self.actors < 1 or self.cpus_per_actor < 1 or self.batch < 1 or self.gpus_per_actor < 0:
            raise ValueError(
                f"actors, cpus_per_actor and batch must be at least 1, gpus_per_actor at least 0; got {self}"
            )
        if self.max_actors is not None and self.max_actors < self.actors:
            raise ValueError(f"max_actors must be at least actors={self.actors}; got {self.max_actors!r}")


@dataclass(frozen=True, kw_only=True)
class EvaluationArguments:
    """Flags of the evaluation job."""

    evaluation: EvaluationConfig
    resources: EvaluationResources = EvaluationResources()
    destination: runs.Destination


def main(arguments: EvaluationArguments) -> None:
    """Evaluate attack x purifier x classifier on a dataset, streamed by Ray Data; write Parquet tables and a report."""
    summary = evaluate(
        arguments.evaluation,
        arguments.resources,
        **dataclasses.asdict(arguments.destination),
    )
    columns = ["setting", "attack", "classifier", "purifier", "accuracy_clean", "accuracy_adversarial"]
    columns += ["accuracy_purified", "accuracy_clean_purified", "psnr_purified", "ssim_purified"]
    print_table(summary.select(columns))
    print(f"report: {storage.join(storage.absolute(arguments.destination.output), 'report.html')}")


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A fixed run of rows, and the cells in which it is still to be scored."""

    name: str
    pieces: tuple[streams.Run, ...]
    cells: frozenset[str]

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.pieces)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every actor knows."""

    grid: Grid
    output: str
    units: Mapping[str, Unit]
    threads: int
    use_gpu: bool
    batch: int


def evaluate(
    config: EvaluationConfig,
    resources: EvaluationResources,
    output: str,
    *,
    overwrite: bool = False,
    shared_filesystem: bool = False,
) -> pa.Table:
    """Evaluate a grid and write the run's folder; computes the cells and units that are not there yet.

    Args:
        config: what is evaluated.
        resources: who does it.
        output: URL of the run's folder.
        overwrite: start afresh.
        shared_filesystem: a local output is one that every host sees.

    Returns:
        The summary (``schema.SUMMARY``) of this call's cells; ``summary.parquet`` also holds those of earlier calls.

    Raises:
        ValueError, FileNotFoundError: bad input, or an output that belongs to another run.
        RuntimeError: images that are neither scored nor rejected.
    """
    output = storage.absolute(output)
    source = open_source(config.data, split=config.split, limit=config.limit)
    if not source.classes:
        raise ValueError(f"{config.data}: an evaluation needs labels, and these images have none")
    grid = evaluation.build_grid(config, source.name, source.rows)
    _check_shapes(grid, source)
    run = runs.open_run(output, _identity(config, source), overwrite=overwrite)
    cells = _with_earlier_cells(output, grid)
    units = units_of(source, UNIT)
    missing = _missing(output, grid, units)
    if missing or not run.finished:
        storage.remove(storage.join(output, storage.SUCCESS))
        hardware = cluster.connect(resources.actors * resources.cpus_per_actor, use_gpu=resources.gpus_per_actor > 0)
        cluster.check_output(output, shared_filesystem=shared_filesystem)
        with run.attempt(hardware, {**dataclasses.asdict(config), **dataclasses.asdict(resources)}):
            storage.write_table(storage.join(output, "cells.parquet"), pa.Table.from_pylist(cells, schema.CELL))
            run.counts.update(_stream(grid, resources, output, missing))
            rejects = storage.list_files(storage.join(output, "rejects"), ".parquet")
            run.counts["rejected"] = len(storage.read_tables(rejects, schema.REJECTS))
            own = {cell.hash for cell in grid.cells}
            results.write_summary(output, cells, own, source.rows - run.counts["rejected"])
            _write_samples(grid, resources, output, units)
        write_report(output, curves=_curves(config))
        run.finish()
    summary = storage.read_table(storage.join(output, "summary.parquet"))
    return summary.filter(pc.is_in(summary["cell"], pa.array([cell.hash for cell in grid.cells])))


def _check_shapes(grid: Grid, source: Source) -> None:
    """Send one black image through every network, so that one that does not fit is found before the work.

    Raises:
        ValueError: names the model and the shape.
    """
    height, width, channels = shape_of(source)
    x = torch.zeros(1, channels, height, width)
    for model in (*grid.classifiers, *grid.purifiers):
        try:
            with torch.no_grad():
                _applied(model, x)
        except RuntimeError as error:
            raise ValueError(
                f"{model.name} does not take images of (H, W, C) = {(height, width, channels)}: {error}"
            ) from error


def _applied(model: models.Model, x: torch.Tensor) -> torch.Tensor:
    network = model.build()
    images: torch.Tensor = purify(network, x, [0]) if model.kind == "purifier" else network(x)
    return images


def _identity(config: EvaluationConfig, source: Source) -> dict[str, Any]:
    """What may not differ between calls on one output; the cells may: each has a hash of its own."""
    return {
        "data": config.data,
        "split": config.split,
        "limit": config.limit,
        "seed": config.seed,
        "precision": config.precision,
        "dataset": source.fingerprint,
        "unit": UNIT,
    }


def _with_earlier_cells(output: str, grid: Grid) -> list[dict[str, Any]]:
    """Rows of ``schema.CELL``: those in the output, then this grid's new ones."""
    url = storage.join(output, "cells.parquet")
    earlier = storage.read_table(url).to_pylist() if storage.exists(url) else []
    known = {row["cell"] for row in earlier}
    return earlier + [dict(cell.row) for cell in grid.cells if cell.hash not in known]


def units_of(source: Source, rows: int) -> list[Unit]:
    """The dataset cut into units of ``rows`` rows, in order; a unit may span shards."""
    units: list[Unit] = []
    pieces: list[streams.Run] = []
    for piece in streams.runs_of(source, length=rows):
        while piece.rows:
            room = rows - sum(run.rows for run in pieces)
            taken = dataclasses.replace(piece, stop=min(piece.stop, piece.start + room))
            pieces.append(taken)
            piece = dataclasses.replace(piece, start=taken.stop)
            if sum(run.rows for run in pieces) == rows:
                units.append(Unit(name=f"{len(units):06d}", pieces=tuple(pieces), cells=frozenset()))
                pieces = []
    if pieces:
        units.append(Unit(name=f"{len(units):06d}", pieces=tuple(pieces), cells=frozenset()))
    return units


def _missing(output: str, grid: Grid, units: Sequence[Unit]) -> list[Unit]:
    """The units with cells that are not scored yet."""
    done: dict[str, set[str]] = {unit.name: set() for unit in units}
    for cell in grid.cells:
        for url in storage.list_files(results.scores_folder(output, cell.hash), ".parquet"):
            done[url.rpartition("/")[2].removesuffix(".parquet")].add(cell.hash)
    wanted = frozenset(cell.hash for cell in grid.cells)
    open_units = (dataclasses.replace(unit, cells=wanted - done[unit.name]) for unit in units)
    return [unit for unit in open_units if unit.cells]


def _stream(grid: Grid, resources: EvaluationResources, output: str, units: Sequence[Unit]) -> dict[str, Any]:
    """Run the pipeline over ``units``; the counts of this attempt."""
    counts: dict[str, Any] = {"in": 0, "out": 0}
    if not units:
        return counts
    actors = min(resources.actors, len(units))
    read = read_unit if resources.reads == "apart" else name_unit
    dataset = streams.read_blocks(
        [(unit,) for unit in units], read, name="read", read_cpus=resources.read_cpus, ordered=False
    )
    scored = dataset.map_batches(
        EvaluationActor,
        fn_constructor_args=(ray.put(_work(grid, resources, output, units)),),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=resources.cpus_per_actor,
        num_gpus=resources.gpus_per_actor,
        compute=ray.data.ActorPoolStrategy(
            min_size=actors,
            max_size=max(actors, min(resources.max_actors or actors, len(units))),
            initial_size=actors,
            max_tasks_in_flight_per_actor=2,
        ),
    )
    first, last = math.inf, 0.0
    with Progress("evaluating", total=sum(unit.rows for unit in units), unit="images") as progress:
        for row in scored.iter_rows():
            counts["in"] += row["rows"]
            counts["out"] += row["rows"] - row["rejected"]
            first, last = min(first, row["started"]), max(last, row["ended"])
            progress.advance(row["rows"])
    return {**counts, "images_per_second": round(counts["in"] / max(last - first, 1e-9), 1)}


def _work(grid: Grid, resources: EvaluationResources, output: str, units: Sequence[Unit]) -> Work:
    return Work(
        grid=grid,
        output=output,
        units={unit.name: unit for unit in units},
        threads=resources.cpus_per_actor,
        use_gpu=resources.gpus_per_actor > 0,
        batch=resources.batch,
    )


def name_unit(unit: Unit) -> pa.Table:
    """The block of a unit that its actor reads by itself."""
    return pa.table({"unit": [unit.name]})


def read_unit(unit: Unit) -> pa.Table:
    """The block of a unit that is read ahead: a row an image (id, label, shape, pixels), and a row a reject."""
    pieces = [read_rows(piece.shard, piece.start, piece.stop) for piece in unit.pieces]
    rows = [
        {"id": name, "label": int(label), "shape": image.shape, "image": image.tobytes()}
        for piece in pieces
        for name, label, image in zip(piece.ids, piece.labels, piece.images, strict=True)
    ]
    rejects = [reject for piece in pieces for reject in piece.rejects]
    return pa.Table.from_pylist([{"unit": unit.name, **row} for row in rows + rejects], TRANSPORT)


TRANSPORT = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("label", pa.int64()),
        pa.field("shape", pa.list_(pa.int64())),
        pa.field("image", pa.binary()),  # null: a reject
        *schema.REJECTS,
    ]
)
"""Between the tasks that read and the actors that evaluate."""


def unpack(table: pa.Table) -> Rows:
    """What :func:`read_unit` packed."""
    images = table.filter(table["image"].is_valid())
    arrays = [
        np.frombuffer(data.as_buffer(), np.uint8).reshape(shape)
        for data, shape in zip(images["image"], images["shape"].to_pylist(), strict=True)
    ]
    return Rows(
        ids=images["id"].to_pylist(),
        images=arrays,
        labels=images["label"].to_numpy(),
        rejects=table.filter(table["image"].is_null()).select(schema.REJECTS.names).to_pylist(),
    )


class Scorer:
    """Scores units and writes them."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.device = "cuda" if work.use_gpu else "cpu"
        if not work.use_gpu:
            torch.set_num_threads(work.threads)
        self.evaluator = Evaluator(work.grid, self.device)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Score the unit that a block holds or names.

        Returns:
            One row: ``rows`` (in), ``rejected``, ``started`` and ``ended`` (seconds of the clock).
        """
        started = time.time()
        unit = self.work.units[block["unit"][0].as_py()]
        ahead = "image" in block.column_names
        pieces = [unpack(block)] if ahead else [read_rows(run.shard, run.start, run.stop) for run in unit.pieces]
        rejects = [reject for piece in pieces for reject in piece.rejects]
        if rejects:
            url = storage.join(self.work.output, "rejects", f"{unit.name}.parquet")
            storage.write_table(url, pa.Table.from_pylist(rejects, schema.REJECTS))
        scores: dict[str, list[pa.Table]] = {cell: [] for cell in unit.cells}
        for scored in self._scored(unit, pieces):
            scores[scored.cell.hash].append(scored.scores)
        for cell, tables in scores.items():
            url = storage.join(results.scores_folder(self.work.output, cell), f"{unit.name}.parquet")
            storage.write_table(url, pa.concat_tables([schema.SCORES.empty_table(), *tables]))
        row = {"rows": unit.rows, "rejected": len(rejects), "started": started, "ended": time.time()}
        return pa.Table.from_pylist([row])

    def _scored(self, unit: Unit, pieces: Sequence[Rows]) -> Iterator[Scored]:
        for ids, images, labels in batches_of(pieces, self.work.batch):
            batch = batch_of(images, labels, (), self.device)
            yield from self.evaluator.evaluate(batch.x, batch.y, ids, unit.cells)


class EvaluationActor(Scorer):
    """A scorer that fetches its work from the object store, where all actors share it."""

    def __init__(self, work: ray.ObjectRef[Work]) -> None:
        super().__init__(ray.get(work))


def batches_of(pieces: Sequence[Rows], size: int) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """Batches of at most ``size`` images of one shape: ids, (N, H, W, C) uint8, labels (N,)."""
    by_shape: dict[tuple[int, ...], list[tuple[str, np.ndarray, int]]] = {}
    for piece in pieces:
        for name, image, label in zip(piece.ids, piece.images, piece.labels, strict=True):
            by_shape.setdefault(image.shape, []).append((name, image, int(label)))
    for rows in by_shape.values():
        for start in range(0, len(rows), size):
            ids, images, labels = zip(*rows[start : start + size], strict=True)
            yield list(ids), np.stack(images), np.array(labels, dtype=np.int64)


def _write_samples(grid: Grid, resources: EvaluationResources, output: str, units: Sequence[Unit]) -> None:
    """Attack a few images once more, which repeats them, and write their pixels for the report."""
    chosen = {cell.hash: results.choose_samples(output, cell.hash, grid.config.seed) for cell in grid.cells}
    task = ray.remote(num_cpus=resources.cpus_per_actor, num_gpus=resources.gpus_per_actor)(sample)
    ray.get(task.remote(ray.put(_work(grid, resources, output, units)), chosen))


def sample(work: Work, chosen: Mapping[str, Sequence[results.Sample]]) -> None:
    """Write ``samples/`` of each cell."""
    scorer = Scorer(work)
    for cell, samples in chosen.items():
        rows = [_only(work.units[unit], {s.id for s in samples}) for unit in {s.unit for s in samples}]
        kinds = {s.id: s.kind for s in samples}
        tables = []
        for ids, images, labels in batches_of(rows, work.batch):
            batch = batch_of(images, labels, (), scorer.device)
            for scored in scorer.evaluator.evaluate(batch.x, batch.y, ids, {cell}):
                tables.append(_samples(scored, batch.x, kinds))
        storage.write_table(storage.join(work.output, "samples", f"{cell}.parquet"), pa.concat_tables(tables))


def _only(unit: Unit, names: AbstractSet[str]) -> Rows:
    """The rows of a unit whose ids are in ``names``."""
    pieces = [read_rows(piece.shard, piece.start, piece.stop) for piece in unit.pieces]
    rows = [
        row for piece in pieces for row in zip(piece.ids, piece.images, piece.labels, strict=True) if row[0] in names
    ]
    return Rows(
        ids=[row[0] for row in rows],
        images=[row[1] for row in rows],
        labels=np.array([row[2] for row in rows], dtype=np.int64),
        rejects=[],
    )


def _samples(scored: Scored, x: torch.Tensor, kinds: Mapping[str, str]) -> pa.Table:
    """A batch's rows of ``schema.SAMPLES``."""
    pixels = {"clean": x, "adversarial": scored.x_adv, "purified": scored.x_pure}
    rows = []
    for index, score in enumerate(scored.scores.to_pylist()):
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
    """The loss curves of the purifiers' trainings, where they lie in or beside the checkpoint."""
    curves = {}
    for text in config.purifiers:
        url = text.partition(",")[0]
        if "/" in url:
            for place in (url, storage.join(url, "..")):
                if storage.exists(storage.join(place, "metrics.parquet")):
                    curves[models.load("purifier", text).name] = storage.read_table(
                        storage.join(place, "metrics.parquet")
                    )
                    break
    return curves
