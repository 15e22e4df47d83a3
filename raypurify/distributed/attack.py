"""Attacked datasets on Ray Data: units of rows stream through read, attack and write."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from raypurify import plugins, runs, storage
from raypurify.data import Rows, Source, check_ids, labels_of, open_source, shape_of
from raypurify.distributed import cluster, units
from raypurify.distributed.units import ActorPool, Unit, batches_of, rows_of_unit, stream, units_of
from raypurify.evaluation import preflight
from raypurify.evaluation.generation import GenerationConfig, Generator, Networks, rounding_effect
from raypurify.runs import schema
from raypurify.runs.progress import print_table
from raypurify.training import Batch, batch_of


@dataclass(frozen=True, kw_only=True)
class AttackArguments:
    """Flags of the attack job."""

    generation: GenerationConfig
    resources: ActorPool = field(default_factory=ActorPool)
    destination: runs.Destination
    max_rejects: float = 0.1
    """Stop when more than this share of the images cannot be decoded, in [0, 1]; 1: never."""
    dry_run: bool = False
    """Attack 32 images, estimate the time, and write nothing."""

    def __post_init__(self) -> None:
        runs.check_max_rejects(self.max_rejects)


def main(arguments: AttackArguments) -> None:
    """Attack a dataset and write the attacked images beside the clean ones, streamed by Ray Data."""
    if arguments.dry_run:
        print_table(pa.Table.from_pylist([dry_run(arguments.generation, arguments.resources)]))
        return
    figures = attack(
        arguments.generation,
        arguments.resources,
        max_rejects=arguments.max_rejects,
        **dataclasses.asdict(arguments.destination),
    )
    print_table(pa.Table.from_pylist([figures]))
    print(f"images: {storage.join(storage.absolute(arguments.destination.output), 'images')}")


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
        overwrite: start afresh.
        shared_filesystem: a local output is one that every host sees.

    Returns:
        ``n``, and :func:`raypurify.evaluation.generation.rounding_effect` over all images; ``run.json`` holds them too.

    Raises:
        ValueError, FileNotFoundError: bad input, or an output that belongs to another run, or that one writes to.
        StoppedError: too many rejects.
        RuntimeError: images that are neither written nor rejected.
    """
    output = storage.absolute(output)
    source, networks, about = _prepare(config)
    identity = _identity(config, source, networks, resources.batch)
    unit = rows_of_unit(output, source.rows, coupled=identity.get("batch", 0), overwrite=overwrite)
    # By its name a reader of the images knows which split they are, and takes them all.
    planned = [dataclasses.replace(one, name=f"{config.split}-{one.name}") for one in units_of(source, unit)]
    with runs.hold(output, {**identity, "unit": unit}, overwrite=overwrite) as run:
        if not run.finished:
            written = {storage.stem(url) for url in storage.list_files(storage.join(output, "images"), ".parquet")}
            missing = [unit for unit in planned if unit.name not in written]
            print("\n".join(about))
            hardware = cluster.connect(resources.needs)
            cluster.check_output(output, shared_filesystem=shared_filesystem)
            with run.attempt(hardware, dataclasses.asdict(resources)):
                work = Generation(config=config, networks=networks, output=output)
                run.counts.update(stream(work, missing, resources, "attacking", max_rejects))
                run.counts.update(_figures(output, source))
            run.finish()
    return _figures(output, source)


def dry_run(config: GenerationConfig, resources: ActorPool) -> dict[str, Any]:
    """What :func:`raypurify.distributed.units.dry_run` tells of an attack; lines on the data are printed."""
    source, networks, about = _prepare(config)
    print("\n".join(about))

    def start(device: str) -> Callable[[Batch, Sequence[str]], object]:
        generate = Generator(config, networks, device)
        return lambda batch, ids: generate(batch.x, batch.y, ids)

    return units.dry_run(source, resources, start)


def _prepare(config: GenerationConfig) -> tuple[Source, Networks, list[str]]:
    """Open the data and the networks and hold them against each other, before any work.

    Returns:
        The source with its labels numbered as the networks number their classes, these, and lines on the data.

    Raises:
        ValueError: images, labels or classes that do not fit; names the model.
    """
    source = open_source(config.input, split=config.split, limit=config.limit)
    if not source.classes:
        raise ValueError(f"{config.input}: an attack needs labels, and these images have none")
    networks = Networks.load(config)
    source = preflight.matched(source, [networks.classifier])
    labels = labels_of(source)
    check_ids(source)
    shape = shape_of(source)
    for model in (networks.classifier, *([networks.purifier] if networks.purifier else [])):
        preflight.check_network(model, source, labels, shape)
    missing = preflight.missing_classes(source, labels, "attacked")
    return source, networks, [preflight.described(source, labels), *(f"warning: {text}" for text in missing)]


def _identity(config: GenerationConfig, source: Source, networks: Networks, batch: int) -> dict[str, Any]:
    spec = plugins.Spec.parse(config.attack)
    attack = plugins.build("raypurify.attacks", spec)
    code = plugins.source_hash(spec, [type(attack)])
    coupled = {"batch": batch} if getattr(attack, "couples_batch", False) else {}
    text = str(plugins.resolved(spec, attack))
    hashes = {"classifier_sha256": networks.classifier.identity}
    if networks.purifier is not None:
        hashes["purifier_sha256"] = networks.purifier.identity
    asked = {**dataclasses.asdict(config), "attack": text}
    if code:
        hashes["attack_sha256"] = code
    return {**asked, "dataset": source.fingerprint, "names": "SPLIT-UNIT", **hashes, **coupled}


def _figures(output: str, source: Source) -> dict[str, Any]:
    """What the attack reached, over all that was written.

    Raises:
        RuntimeError: images are missing.
    """
    narrow = pa.schema([column for column in schema.IMAGES if column.name not in ("image", "clean")])
    table = storage.read_tables(storage.list_files(storage.join(output, "images"), ".parquet"), narrow)
    rejects = storage.list_files(storage.join(output, "rejects"), ".parquet")
    rejected = len(storage.read_tables(rejects, schema.REJECTS))
    if len(table) + rejected != source.rows:
        raise RuntimeError(f"{output}: {len(table)} images written and {rejected} rejected, of {source.rows}")
    if not len(table):
        raise ValueError(f"{output}: every image was rejected; see rejects/")
    return {"n": len(table), "rejected": rejected, **rounding_effect(table)}


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What every actor knows: see :class:`raypurify.distributed.units.Work`."""

    config: GenerationConfig
    networks: Networks
    output: str

    def begin_anew(self, unit: Unit) -> Unit:
        """A unit is always made whole."""
        return unit

    def start(self, pool: ActorPool) -> Writer:
        """The networks, on the actor's device."""
        return Writer(self, pool)


class Writer:
    """Attacks units and writes the images."""

    def __init__(self, work: Generation, pool: ActorPool) -> None:
        self.work, self.device, self.batch = work, pool.device, pool.batch
        self.generate = Generator(work.config, work.networks, self.device)

    def __call__(self, unit: Unit, pieces: Sequence[Rows]) -> None:
        """Write the images of a unit: PNG files first, so that a Parquet file that is there says that they are."""
        tables = [schema.IMAGES.empty_table()]
        for ids, images, labels in batches_of(pieces, self.batch):
            batch = batch_of(images, labels, (), self.device)
            tables.append(self.generate(batch.x, batch.y, ids))
        table = pa.concat_tables(tables)
        if self.work.config.png:
            folder = storage.join(self.work.output, "png", self.work.config.split)
            for row in table.select(["id", "label", "image"]).to_pylist():
                name = f"{quote(row['id'], safe='')}.png"
                storage.write_bytes(storage.join(folder, str(row["label"]), name), row["image"])
        storage.write_table(storage.join(self.work.output, "images", f"{unit.name}.parquet"), table)
