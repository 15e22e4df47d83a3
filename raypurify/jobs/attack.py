"""Attacked datasets: units of rows go through read, attack and write."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from raypurify import models, runs, storage
from raypurify.data import Source, open_source, shape_of
from raypurify.data.columns import names_of_classes
from raypurify.evaluation import preflight, units
from raypurify.evaluation.attacking import settled
from raypurify.evaluation.generation import (
    AttackedImages,
    GenerationConfig,
    grid_of,
    identity_of,
    models_of,
    rounding_effect,
)
from raypurify.evaluation.grid import Grid
from raypurify.jobs import rows
from raypurify.jobs.attempt import FINISHED, JobArguments, attempt_at, count_rejects, hold, is_done
from raypurify.jobs.resources import ActorPool
from raypurify.jobs.rows import Process, RowWork
from raypurify.jobs.work import undone
from raypurify.runs import log, schema
from raypurify.runs.progress import print_table
from raypurify.storage.published import cut

PNG_NAME = 251
"""Bytes of a PNG file's name before ``.png``: the name of a local file has at most 255."""


@dataclass(frozen=True, kw_only=True)
class AttackArguments(JobArguments):
    """Flags of the attack job."""

    generation: GenerationConfig
    resources: ActorPool = field(default_factory=ActorPool)
    dry_run: bool = False
    """Attack 32 images, estimate the time, and write nothing."""


def main(arguments: AttackArguments) -> None:
    """Attack a dataset and write the attacked images beside the clean ones, on Ray or with --local."""
    if arguments.dry_run:
        print_table(pa.Table.from_pylist([dry_run(arguments.generation, arguments.resources)]))
        return
    print_table(pa.Table.from_pylist([run(arguments)]))
    log.tell(f"images: {storage.join(storage.absolute(arguments.destination.output), 'images')}")


def run(arguments: AttackArguments) -> dict[str, Any]:
    """:func:`attack`, by its flags."""
    return attack(
        arguments.generation,
        arguments.resources,
        **arguments.usual,
    )


def attack(
    config: GenerationConfig,
    resources: ActorPool,
    output: str,
    *,
    max_rejects: float = 1.0,
    overwrite: bool = False,
    shared_filesystem: bool = False,
) -> dict[str, Any]:
    """Write an attacked dataset; makes the units that are not there yet.

    The images are written as PNG in Parquet, rounded to 8 bits; a reader of the output's ``images`` folder, such as
    ``--data``, takes them for a dataset.

    Args:
        config: what is attacked, and how.
        resources: who does it.
        output: URL of the run's folder.
        max_rejects: share of the images, in [0, 1]; when more cannot be decoded the work stops.
        overwrite, shared_filesystem: see :class:`raypurify.runs.Destination`.

    Returns:
        ``n``, and :func:`raypurify.evaluation.generation.rounding_effect` over all images; ``run.json`` holds them too.

    Raises:
        ValueError, FileNotFoundError: bad input, or an output that belongs to another run, or that one writes to.
        StoppedError: too many rejects.
        RuntimeError: images that are neither written nor rejected.
    """
    output = storage.absolute(output)
    config, source, grid, about = _prepare(config if overwrite else _as_begun(config, output), resources)
    size = rows.unit_size(output, source, resources, coupled=grid.coupled, overwrite=overwrite)
    identity = {**identity_of(config, source.fingerprint, grid), "unit": size}
    with hold([resources], output, identity, overwrite=overwrite, shared_filesystem=shared_filesystem) as run:
        work = GenerationWork(config=config, grid=grid, output=output, **source.named_classes)
        # By its name a reader of the images knows which split they are, and takes them all.
        todo = undone(work, units.units_of(source, size, prefix=f"{config.split}-"))
        if is_done(run, todo):
            log.tell(FINISHED)
            return _figures(output, source, count_rejects(output))
        log.tell(*about)
        run.counts.update(images=source.rows, **source.named_classes)
        with attempt_at(run, resources, work, shared_filesystem=shared_filesystem) as attempt:
            attempt.stream(todo, "attacking", max_rejects)
            figures = _figures(output, source, attempt.judge(source.rows, max_rejects))
            run.counts.update(figures)
        run.finish()
    return figures


def training_pairs(configs: Iterable[GenerationConfig], resources: ActorPool, folder: str) -> str:
    """Attack training images in several ways, each in a run of its own below a folder; all runs as ``train_against``.

    The images are attacked once, however often trainings go through them.
    """
    urls = []
    for config in configs:
        images = "all" if config.limit is None else f"{config.limit:,}"
        log.tell(f"attacking {images} training images of {config.input} by {config.attack} on {config.classifier}")
        output = storage.join(folder, re.sub(r"[^\w.]+", "-", config.attack))
        attack(config, resources, output)
        urls.append(storage.join(output, "images"))
    return f"attacked,url={json.dumps(urls, separators=(',', ':'))}"


def dry_run(config: GenerationConfig, resources: ActorPool) -> dict[str, Any]:
    """What :func:`raypurify.jobs.rows.dry_run` tells of an attack; lines on the data are printed."""
    config, source, grid, about = _prepare(config, resources)
    log.tell(*about)
    return rows.dry_run(source, resources, GenerationWork(config=config, grid=grid, output=""))


def _as_begun(config: GenerationConfig, output: str) -> GenerationConfig:
    """The config, by which ``auto`` is the precision in which the output's run was begun, if one was.

    What is fast here may be another precision than where that was.
    """
    begun = runs.identity_of(output)
    if not begun or config.attack_precision != "auto":
        return config
    return replace(config, attack_precision=begun.get("attack_precision", "float32"))


def _prepare(config: GenerationConfig, resources: ActorPool) -> tuple[GenerationConfig, Source, Grid, tuple[str, ...]]:
    """Settle the precision, open data and networks, and hold them against each other; with lines on the data."""
    config = replace(config, attack_precision=settled(config.attack_precision, resources.device))
    classifier = models.load("classifier", config.classifier)
    source = open_source(config.input, split=config.split, limit=config.limit, view=config.view)
    source = preflight.as_trained(source, config.view, [classifier])
    config = replace(config, view=source.view)
    grid = grid_of(config, source.name, source.rows, resources.batch_for(shape_of(source)), classifier)
    named = models_of(config, grid)
    source, about, warnings = preflight.checked(config.input, source, named, job="an attack", done="attacked")
    return config, source, grid, preflight.told(about, warnings)


def _figures(output: str, source: Source, rejected: int) -> dict[str, Any]:
    """What the attack reached, over all that was written; so many images were rejected.

    Raises:
        RuntimeError: images are missing.
    """
    narrow = pa.schema([column for column in schema.IMAGES if column.name not in ("image", "clean")])
    table = storage.read_tables(storage.list_files(storage.join(output, "images"), ".parquet"), narrow)
    if len(table) + rejected != source.rows:
        raise RuntimeError(f"{output}: {len(table)} images written and {rejected} rejected, of {source.rows}")
    if not len(table):
        raise ValueError(f"{output}: every image was rejected; see rejects/")
    return {"n": len(table), "rejected": rejected, **rounding_effect(table)}


@dataclass(frozen=True, kw_only=True)
class GenerationWork(RowWork):
    """An attack, as every actor knows it: a table of images."""

    config: GenerationConfig
    grid: Grid
    class_names: Sequence[str] = ()
    """By number; none where the input does not name its classes."""

    @property
    def columns(self) -> pa.Schema:
        """The schema of the images."""
        return schema.IMAGES

    @property
    def marks(self) -> dict[str, str]:
        """The folder of the images."""
        return {"images": storage.join(self.output, "images")}

    def process(self, device: str) -> Process:
        """The attacked images of a batch."""
        attacked = AttackedImages(self.grid, device)
        return lambda batch, ids, marks, made: [("images", attacked(batch.x, batch.y, ids))]

    def write(self, url: str, table: pa.Table) -> None:
        """Write the images of a unit: PNG files first, so that a Parquet file that is there says that they are."""
        if self.config.png:
            folder = storage.join(self.output, "png", self.config.split)
            for row in table.select(["id", "label", "image"]).to_pylist():
                name = cut(quote(row["id"], safe=""), PNG_NAME) + ".png"
                storage.write_bytes(storage.join(folder, str(row["label"]), name), row["image"])
        if self.class_names:
            table = table.replace_schema_metadata(names_of_classes("label", self.class_names))
        super().write(url, table)
