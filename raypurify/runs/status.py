"""How far a run is, from its files alone: nothing is written, and nothing is computed.

A run's parts are epochs of a training, or units of a dataset: the files that say that a unit is done are counted, and
their times tell the rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np

from raypurify import storage
from raypurify.runs import lease
from raypurify.runs.reasons import counted
from raypurify.storage.published import redacted, visible

JobName = Literal["training", "evaluation", "attack", "cleaning", "certification"]
State = Literal["finished", "running", "interrupted", "overwritten"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Something that is counted, such as epochs: how many are done, of how many."""

    name: str
    done: int
    total: int | None
    """How many there are; None where no file tells."""
    is_exact: bool = True
    """Whether the count is exact. That of images is not: units have about the same number of them."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How far a job is."""

    parts: tuple[Part, ...]
    seconds_left: float | None = None
    """The time left, by the rate of the last attempt; None where it has not done enough to tell."""
    rejects: tuple[str, ...] = ()
    """URLs of tables of rejects."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a run's files say."""

    job: JobName | None
    """None for a run that is being removed to start afresh."""
    state: State
    identity: Mapping[str, Any]
    """The identity. It and ``rejects`` are without credentials and without what disguises itself on a terminal."""
    attempts: tuple[Mapping[str, Any], ...]
    extent: Extent
    holder: lease.Holder | None
    good_for: float | None
    """Seconds that the holder's lease is good for; None where the store does not tell."""
    rejects: Mapping[str, int] = field(default_factory=dict)
    """How many rejects there are for each reason."""


def status_of(output: str) -> Status:
    """What the files of a run say.

    Raises:
        ValueError: there is no run; the message says who begins one, or names the runs in the folder's folders.
    """
    try:
        run = storage.read_json(storage.join(output, "run.json"))
    except NotADirectoryError:
        raise ValueError(f"{output} is a file, and holds no run. Give the --output of a command") from None
    except FileNotFoundError:
        raise ValueError(f"{output} holds no run: there is no run.json in it{_instead(output)}") from None
    identity, attempts = run["identity"], tuple(run["attempts"])
    job = job_of(identity)
    held = lease.seen(output)
    extent = Extent(parts=()) if job is None else EXTENTS[job](output, identity, attempts)
    return Status(
        job=job,
        state=_state(output, job, held),
        identity=visible(redacted(identity)),
        attempts=attempts,
        extent=extent,
        holder=held and held[0],
        good_for=held and held[1],
        rejects=visible(counted(extent.rejects)),
    )


def job_of(identity: Mapping[str, Any]) -> JobName | None:
    """Which job a run's identity is of."""
    if "epochs" in identity:
        return "training"
    if "attack" in identity:
        return "attack"
    if "shards" in identity:
        return "cleaning"
    if "alpha" in identity:
        return "certification"
    return "evaluation" if "data" in identity else None


def _state(output: str, job: JobName | None, held: tuple[lease.Holder, float | None] | None) -> State:
    if held is not None and (held[1] is None or held[1] > 0):
        return "running"
    if job is None:
        return "overwritten"
    return "finished" if storage.is_success(output) else "interrupted"


def _instead(output: str) -> str:
    """The end of a sentence on a folder without a run: who begins one just now, or which of its folders hold runs."""
    held = lease.seen(output)
    if held is not None:
        return f" yet; attempt {held[0].attempt} on host {held[0].host} has begun at {held[0].started}"
    if not storage.is_local(output):
        return ""
    fs, path = storage.filesystem(output)
    found = sorted(name.split("/")[-2] for name in fs.glob(f"{path}/*/run.json"))
    return f"; its folders {', '.join(found)} hold some" if found else ". Give the --output of a command"


def _training(output: str, identity: Mapping[str, Any], attempts: tuple[Mapping[str, Any], ...]) -> Extent:
    total = int(identity["epochs"])
    checkpoints = storage.join(output, "checkpoints")
    found = [url for url in storage.list_files(checkpoints, "/metrics.json") if url.endswith("/model/metrics.json")]
    if not found:
        return Extent(parts=(Part(name="epochs", done=0, total=total),))
    checkpoint = found[-1].removesuffix("/model/metrics.json")
    metrics = storage.read_json(found[-1])
    epochs, images = int(metrics["epoch"]), int(metrics["images"])
    # A checkpoint within an epoch tells how many steps an epoch has, and how many of the next one are done.
    steps = int(metrics.get("epoch_steps", 1))
    images_each = images * steps // (epochs * steps + int(metrics.get("steps", 0)))
    try:
        curve = storage.read_table(storage.join(checkpoint, "metrics.parquet"), ["epoch", "images_per_second"])
        last = curve["images_per_second"].to_numpy()[curve["epoch"].to_numpy() == max(curve["epoch"].to_pylist())]
        seconds_left = (images_each * total - images) / float(np.median(last))
    except FileNotFoundError:  # the checkpoint is being written
        seconds_left = None
    return Extent(
        parts=(
            Part(name="epochs", done=epochs, total=total),
            Part(name="images", done=images, total=images_each * total),
        ),
        seconds_left=seconds_left,
        rejects=tuple(url for url in [storage.join(checkpoint, "rejects.parquet")] if storage.exists(url)),
    )


def _evaluation(output: str, identity: Mapping[str, Any], attempts: tuple[Mapping[str, Any], ...]) -> Extent:
    url = storage.join(output, "cells.parquet")
    cells = storage.read_table(url, ["cell"])["cell"].to_pylist() if storage.exists(url) else []
    marks = storage.times_written(storage.join(output, "scores"), ".parquet")
    files = {cell: {url: at for url, at in marks.items() if f"/cell={cell}/" in url} for cell in cells}
    units = _units_of_rows(output, identity, attempts, max(map(len, files.values()), default=0))
    done = {url: at for of_cell in files.values() for url, at in of_cell.items()}
    total = None if units is None else units * len(cells)
    return Extent(
        parts=(
            Part(name="cells", done=sum(len(of_cell) == units for of_cell in files.values()), total=len(cells)),
            Part(name="units", done=len(done), total=total),
        ),
        seconds_left=_seconds_left(done, total, attempts),
        rejects=_tables_of_rejects(output),
    )


def _attack(output: str, identity: Mapping[str, Any], attempts: tuple[Mapping[str, Any], ...]) -> Extent:
    marks = storage.times_written(storage.join(output, "images"), ".parquet")
    units = _units_of_rows(output, identity, attempts, len(marks))
    return _of_units(output, marks, units, _images_of(attempts), attempts)


def _certification(output: str, identity: Mapping[str, Any], attempts: tuple[Mapping[str, Any], ...]) -> Extent:
    """By the marks of the last attempt's cells, which tells of them."""
    told = [attempt["counts"] for attempt in attempts if "marks" in attempt["counts"]]
    units = _units_of_rows(output, identity, attempts, 0)
    found = storage.times_written(storage.join(output, identity["marks"]), ".parquet")
    cells = {f"cell={cell}" for cell in told[-1]["cells"]} if told else set()
    marks = {url: at for url, at in found.items() if cells & set(url.split("/"))}
    total = units * told[-1]["marks"] if units and told else None
    return _of_units(output, marks, total, None, attempts)


def _cleaning(output: str, identity: Mapping[str, Any], attempts: tuple[Mapping[str, Any], ...]) -> Extent:
    marks = storage.times_written(storage.join(output, "manifest"), ".parquet")
    # The marks of the plan's generations, as raypurify.cleaning.plan writes them.
    plans = [storage.read_json(url) for url in storage.list_files(storage.join(output, "plan"), storage.SUCCESS)]
    names = ("units", "images", "tars")
    units, images, tars = (sum(plan["counts"][name] - plan["replaced"][name] for plan in plans) for name in names)
    return _of_units(output, marks, units if plans else None, images if plans and not tars else None, attempts)


def _of_units(
    output: str,
    marks: Mapping[str, float | None],
    units: int | None,
    images: int | None,
    attempts: tuple[Mapping[str, Any], ...],
) -> Extent:
    parts = [Part(name="units", done=len(marks), total=units)]
    if images is not None and units:
        done = round(images * min(1, len(marks) / units))
        parts.append(Part(name="images", done=done, total=images, is_exact=len(marks) in (0, units)))
    return Extent(
        parts=tuple(parts),
        seconds_left=_seconds_left(marks, units, attempts),
        rejects=_tables_of_rejects(output),
    )


EXTENTS = {
    "training": _training,
    "evaluation": _evaluation,
    "attack": _attack,
    "cleaning": _cleaning,
    "certification": _certification,
}


def _seconds_left(
    marks: Mapping[str, float | None], total: int | None, attempts: tuple[Mapping[str, Any], ...]
) -> float | None:
    """Seconds that the rest takes by the rate at which the last attempt has made its marks.

    A unit's marks in several cells are made together: those of the first unit give the start, and no rate.
    """
    if total is None or not attempts:
        return None
    began = datetime.fromisoformat(attempts[-1]["started"]).timestamp()
    units: dict[str, list[float]] = {}
    for url, at in marks.items():
        if at is not None and at >= began:
            units.setdefault(storage.stem(url), []).append(at)
    ends = sorted((max(times), len(times)) for times in units.values())
    if len(ends) < 2 or ends[-1][0] == ends[0][0]:
        return None
    rate = sum(count for _, count in ends[1:]) / (ends[-1][0] - ends[0][0])
    return max(0, total - len(marks)) / rate


def _units_of_rows(
    output: str, identity: Mapping[str, Any], attempts: Iterable[Mapping[str, Any]], done: int
) -> int | None:
    """How many units the dataset has; of a finished run, which may not tell of its images, as many as are ``done``."""
    images = _images_of(attempts)
    if images is None:
        return done if storage.is_success(output) else None
    return math.ceil(images / identity["unit"])


def _images_of(attempts: Iterable[Mapping[str, Any]]) -> int | None:
    """How many images the dataset has, as the last attempt that tells of them does."""
    counts = [attempt["counts"]["images"] for attempt in attempts if "images" in attempt["counts"]]
    return counts[-1] if counts else None


def _tables_of_rejects(output: str) -> tuple[str, ...]:
    return tuple(storage.list_files(storage.join(output, "rejects"), ".parquet"))
