"""Units of rows: how a labelled dataset is cut, read and sent through networks by evaluation and attack.

A unit is a fixed run of rows, of which an actor makes a table for each mark that the unit lacks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from raypurify import runs, storage
from raypurify.data import Source, narrowed, read_rows, shape_of
from raypurify.evaluation.units import BatchSize, Unit, batches_of, rows_of_unit
from raypurify.jobs.engine import engine_of
from raypurify.jobs.resources import ActorPool
from raypurify.jobs.work import Advance, Made, Make
from raypurify.report import formats
from raypurify.runs import lease, schema
from raypurify.storage.published import published
from raypurify.training.batches import Batch, batch_of

WARMING, TRIED = 2, 32
"""Images that a dry run tries: those that networks are called for the first time with, and those that are timed."""


Process = Callable[[Batch, Sequence[str], AbstractSet[str], Any], Iterable[tuple[str, pa.Table]]]
"""From a batch, its ids, names of marks, and what stages before have made of it: a table for each of these marks."""
Prepare = Callable[[Batch, Sequence[str], AbstractSet[str], Any], Any]
"""From the same: what the next stage is given of the batch."""


def unit_size(
    output: str,
    source: Source,
    pool: ActorPool,
    stages: Mapping[str, ActorPool] | None = None,
    *,
    coupled: int,
    overwrite: bool,
) -> int:
    """How many rows the units of a run have, as its pool and those of stages want it: see :func:`rows_of_unit`.

    A GPU is to have a batch at once, or half of an actor's share, so that work which is cut off keeps a part.
    """
    pools = (pool, *(stages or {}).values())
    batch = max((one.batch_for(shape_of(source)) for one in pools if one.device == "cuda"), default=0)
    whole = min(batch, -(-source.rows // (2 * max(one.most for one in pools))))
    return rows_of_unit(output, source.rows, coupled=coupled, whole=whole, overwrite=overwrite)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A unit between two stages."""

    rejects: Sequence[Mapping[str, str]]
    batches: Iterable[tuple[list[str], np.ndarray, np.ndarray, Any]]
    """Ids, (N, H, W, C) uint8, labels (N,), and what the stages before have made of the batch."""

    @classmethod
    def of(cls, content: Any, size: BatchSize) -> Parts:
        """What a unit read, in batches; or the parts that a stage has made of it."""
        if isinstance(content, Parts):
            return content
        rejects = [reject for piece in content for reject in piece.rejects]
        return cls(rejects=rejects, batches=((*batch, None) for batch in batches_of(content, size)))


@dataclass(frozen=True, kw_only=True)
class RowWork:
    """What every actor knows of a job on units of rows: see :class:`raypurify.jobs.work.Work`."""

    output: str

    @property
    def columns(self) -> pa.Schema:
        """The schema of the tables that are made."""
        raise NotImplementedError

    @property
    def marks(self) -> dict[str, str]:
        """Folders of the tables, by a name."""
        raise NotImplementedError

    @property
    def attacked(self) -> AbstractSet[str]:
        """The names of the marks whose tables are of attacked images."""
        return set(self.marks)

    def earlier(self) -> Iterable[str]:
        """Folders with tables of the same images that earlier calls have made."""
        return ()

    @property
    def stages(self) -> Mapping[str, ActorPool]:
        """See :class:`raypurify.jobs.work.Work`."""
        return {}

    def prepare(self, stage: str, device: str) -> Prepare:
        """Build the networks of a stage on a device: what the stage does."""
        raise NotImplementedError

    def process(self, device: str) -> Process:
        """Build the networks on a device: what makes the tables."""
        raise NotImplementedError

    def write(self, url: str, table: pa.Table) -> None:
        """Write the table of a unit."""
        storage.write_table(url, table)

    def start_stage(self, stage: str, pool: ActorPool) -> Advance:
        """Networks of a stage on the actor's device."""
        prepare = self.prepare(stage, pool.device)

        def advance(content: Any, marks: AbstractSet[str]) -> Parts:
            parts = Parts.of(content, pool.batch_for)
            batches = []
            for ids, images, labels, made in parts.batches:
                with _naming(ids):
                    prepared = prepare(batch_of(images, labels, (), pool.device), ids, marks, made)
                batches.append((ids, images, labels, prepared))
            return Parts(rejects=parts.rejects, batches=batches)

        return advance

    def start(self, pool: ActorPool, held: lease.Watch) -> Make:
        """Networks on the actor's device; nothing is written before a unit is published."""
        process, folders, columns, attacked = self.process(pool.device), self.marks, self.columns, self.attacked

        def make(unit: Unit, content: Any, marks: AbstractSet[str]) -> Made:
            parts = Parts.of(content, pool.batch_for)
            rejects = published([*parts.rejects])
            changed = _changed(self.output, unit, rejects)
            if changed and unit.parts > 1:
                # Other parts may have read other images: one actor has to do the whole unit anew.
                return Made(images=0, rejected=0, publish=lambda: None)
            marks = set(folders) if changed else marks
            tables = {mark: [columns.empty_table()] for mark in marks}
            for ids, images, labels, made in parts.batches:
                with _naming(ids):
                    for mark, table in process(batch_of(images, labels, (), pool.device), ids, marks, made):
                        tables[mark].append(table)

            def publish() -> None:
                if changed:
                    self._begin_anew(unit, rejects)
                for mark, parts in tables.items():
                    self.write(_table_url(folders[mark], unit), pa.concat_tables(parts))

            counts = _fooled(part for mark in attacked & set(marks) for part in tables[mark])
            return Made(images=unit.images, rejected=unit.share(len(rejects)), publish=publish, counts=counts)

        return make

    def _begin_anew(self, unit: Unit, rejects: Sequence[Mapping[str, str]]) -> None:
        """Let nothing stand that was made of a unit when other images of it could be read."""
        for folder in {*self.marks.values(), *self.earlier()}:
            storage.remove(_table_url(folder, unit))
        # The rejects come last: cut off before, the unit still tells that other images can be read.
        url = _table_url(storage.join(self.output, "rejects"), unit)
        if rejects:
            storage.write_table(url, pa.Table.from_pylist(rejects, schema.REJECTS))
        else:
            storage.remove(url)


@contextmanager
def _naming(ids: Sequence[str]) -> Iterator[None]:
    """Raise what fails on a batch as a FailedError that names its images.

    Raises:
        runs.FailedError: whatever else was raised.
    """
    try:
        yield
    except Exception as error:
        some = ids[0] if len(ids) == 1 else f"{ids[0]} to {ids[-1]} ({len(ids)} images)"
        advice = "; give a lower --batch" if isinstance(error, torch.OutOfMemoryError) else ""
        raise runs.FailedError(f"{some}: {type(error).__name__}: {error}{advice}") from error


def _fooled(tables: Iterable[pa.Table]) -> dict[str, int]:
    """``right``: how many images a victim's classifier gets right while they are clean; ``fooled``: of these, attacked,
    wrong.
    """
    counts = {"right": 0, "fooled": 0}
    for table in tables:
        right = table.filter(pc.equal(table["pred_clean"], table["label"]))
        counts["right"] += len(right)
        counts["fooled"] += pc.sum(pc.not_equal(right["pred_adversarial"], right["label"])).as_py() or 0
    return counts


def _table_url(folder: str, unit: Unit) -> str:
    return storage.join(folder, f"{unit.name}.parquet")


def _changed(output: str, unit: Unit, rejects: Sequence[Mapping[str, str]]) -> bool:
    """Whether a unit's rejected images differ from those of an earlier time. At first a unit has no rejects."""
    url = _table_url(storage.join(output, "rejects"), unit)
    there = storage.read_table(url).to_pylist() if storage.exists(url) else []
    return {row["id"] for row in there} != {row["id"] for row in rejects}


def dry_run(source: Source, pool: ActorPool, work: RowWork) -> dict[str, Any]:
    """Send a few images through everything, in this process, and estimate the time; nothing is written.

    Args:
        source: the dataset.
        pool: the actors that would do the work.
        work: what they would do.

    Raises:
        ValueError: a cluster that is joined, and is too small; images that do not fit.
    """
    engine_of(pool).check_room(pool.needs)
    pool.set_threads()
    device = pool.device if torch.cuda.is_available() else "cpu"
    process = work.process(device)
    for count in (WARMING, TRIED):
        tried = narrowed(source, np.arange(min(count, source.rows)))
        began = time.perf_counter()
        pieces = [read_rows(shard, 0, shard.rows) for shard in tried.shards]
        for ids, images, labels in batches_of(pieces, pool.batch_for):
            deque(process(batch_of(images, labels, (), device), ids, set(work.marks), None), maxlen=0)
        rate = tried.rows / (time.perf_counter() - began) * pool.needs.count
    return {
        "images": source.rows,
        "shape": "x".join(map(str, shape_of(source))),
        "classes": source.number_of_classes,
        "actors": pool.needs.told(),
        "tried": f"{tried.rows} on {device}",
        "rejected": sum(len(piece.rejects) for piece in pieces),
        "images_per_second": rate,
        "estimated": formats.duration(source.rows / rate),
    }
