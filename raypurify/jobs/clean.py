"""Bulk cleaning: planned units go to actors that read, purify, write and account for each."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections import Counter
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from raypurify import runs, storage
from raypurify.cleaning import accounts, inputs, plan, planner, quarantine
from raypurify.cleaning.cleaner import Cleaner, Cleaning, CleaningConfig, channels_of, fits
from raypurify.cleaning.plan import Counts, PlannedUnit, UnitContent
from raypurify.jobs.attempt import FINISHED, JobArguments, attempt_at, check_rejects, hold, is_done
from raypurify.jobs.resources import ActorPool
from raypurify.jobs.work import Made, Make, undone
from raypurify.report import formats
from raypurify.report.cleaning import write_cleaning_report
from raypurify.runs import lease, log
from raypurify.runs.progress import print_table

REASONS = 20
"""How many reasons for rejects are printed."""
TRIED = 32
"""How many images are tried before the work. A dry run tries eight times as many."""
TRIAL_SECONDS = 10
"""About how many seconds a dry run tries images for."""


@dataclass(frozen=True, kw_only=True)
class CleaningArguments(JobArguments):
    """Flags of the cleaning job."""

    cleaning: CleaningConfig
    resources: ActorPool = field(default_factory=ActorPool)
    update: bool = False
    """Clean what is new in the input, or has changed since it was planned. An unfinished plan is finished first."""
    max_rejects: float = 0.1
    """Stop when more than this share of the images is rejected. The share is in [0, 1]; with 1 the run never stops."""
    dry_run: bool = False
    """Count, try up to 256 images, estimate the time, and write nothing."""

    def __post_init__(self) -> None:
        if self.resources.reads != "fused":
            raise ValueError("reads: a cleaning's actors read for themselves; leave it at fused")
        if self.update and self.cleaning.shards != "mirror":
            raise ValueError("update: shards can't be changed in places; clean into mirrored outputs, or start afresh")
        if self.update and self.cleaning.limit is not None:
            raise ValueError("update: it takes up the whole input, and this run has a limit; leave one of the two out")
        if self.update and self.dry_run:
            raise ValueError("dry_run: it tells of the whole input, not of an update; leave one of the two out")
        super().__post_init__()


def main(arguments: CleaningArguments) -> None:
    """Clean images of any size and number, on Ray or with --local: each ends up cleaned or in rejects, exactly once."""
    output = storage.absolute(arguments.destination.output)
    if arguments.dry_run:
        found = dry_run(arguments.cleaning, arguments.resources, output)
        print_table(pa.Table.from_pylist([found]))
        if found["rejected"] > arguments.max_rejects * found["tried"]:
            log.tell(f"warning: by this sample the run would stop, by --max-rejects={arguments.max_rejects}")
        return
    totals = run(arguments)
    print_table(pa.Table.from_pylist([totals.shown()]))
    for reason, count in sorted(totals.reasons.items(), key=lambda item: -item[1])[:REASONS]:
        log.tell(formats.visible(f"rejected: {count:,} x {reason}"))
    if totals.skipped:
        log.tell(formats.visible(f"left alone, being hidden, no images, or named twice: {totals.left_alone}"))
    log.tell(f"images: {storage.join(output, 'images')}", f"report: {storage.join(output, 'report.html')}")


def run(arguments: CleaningArguments) -> accounts.Totals:
    """:func:`clean`, by its flags."""
    return clean(
        arguments.cleaning,
        arguments.resources,
        update=arguments.update,
        **arguments.usual,
    )


def clean(
    config: CleaningConfig,
    resources: ActorPool,
    output: str,
    *,
    update: bool = False,
    max_rejects: float = 1.0,
    overwrite: bool = False,
    shared_filesystem: bool = False,
) -> accounts.Totals:
    """Clean what is at an input into an output; does the units that are not accounted for yet.

    Args:
        config: what is cleaned.
        resources: who does it.
        output: URL of the run's folder; neither inside the input nor around it.
        update: plan what is new or has changed, once what was planned before is done.
        max_rejects: share of the images, in [0, 1]; when more are rejected the work stops.
        overwrite, shared_filesystem: see :class:`raypurify.runs.Destination`.

    Raises:
        ValueError, FileNotFoundError: bad input, another run's output, or one that is being written.
        StoppedError: too many rejects.
        RuntimeError: images that are in neither manifest nor rejects, or there twice.
    """
    output = storage.absolute(output)
    config = _placed(config, output)
    work = CleaningWork(cleaning=Cleaning.load(config, output))
    # The last bit of a pixel may turn on which images share a batch.
    identity = {**work.cleaning.identity(), **resources.batching}
    with hold([resources], output, identity, overwrite=overwrite, shared_filesystem=shared_filesystem) as run:
        is_planned = bool(plan.generations(output))
        is_whole = is_planned and is_done(run, undone(work, plan.units(output)))
        if is_whole and not update:
            log.tell(f"{FINISHED}; --update looks for what is new or has changed")
            return accounts.add_up(output)
        is_behind = update and is_planned and not is_whole
        _begin(run, work.cleaning, is_update=is_whole)
        with attempt_at(run, resources, work, shared_filesystem=shared_filesystem) as attempt:
            if is_behind:
                log.tell("update: first what an earlier command has planned and not done")
                # Its rejects are not judged: the update may mend them.
                attempt.stream(undone(work, plan.units(output)), "cleaning")
                _update(config, output)
            attempt.stream(undone(work, plan.units(output)), "cleaning", max_rejects)
            totals = _conclude(run, max_rejects)
        write_cleaning_report(output, totals, accounts.read_changes(output, totals))
        run.finish()
    return totals


def _placed(config: CleaningConfig, output: str) -> CleaningConfig:
    """The config, with its input as seen from anywhere, which is neither inside the output nor around it."""
    # A final slash makes it a folder.
    config = dataclasses.replace(config, input=storage.absolute(config.input) + "/" * config.input.endswith("/"))
    inputs.check_apart(config.input, output)
    return config


def _begin(run: runs.Run, work: Cleaning, *, is_update: bool) -> None:
    """Plan what is to be done, and warn of what the first images tell.

    An input that is refused before a run's first attempt leaves nothing that the next command would run into.
    """
    is_new = not run.attempts
    try:
        run.begin()
        if is_update:
            _update(work.config, run.output)
        else:
            _plan(work.config, run.output, output=run.output)
        run.counts["warnings"] = _warn(work, run.output)
    except (ValueError, FileNotFoundError):
        if is_new:
            for name in ("plan", "run.json"):
                storage.remove(storage.join(run.output, name))
        raise


def _conclude(run: runs.Run, max_rejects: float) -> accounts.Totals:
    """Add everything up, once all units are done, and remove what was only of use before.

    Raises:
        StoppedError: too many rejects.
    """
    run.check()
    storage.remove(storage.join(run.output, "starts"))
    storage.remove_drafts(run.output)
    accounts.retire(run.output)
    totals = accounts.add_up(run.output)
    check_rejects(run.output, totals.rejected, totals.n, max_rejects)
    return totals


@dataclass(frozen=True, kw_only=True)
class CleaningWork:
    """A cleaning, as every actor knows it: see :class:`raypurify.jobs.work.Work`."""

    cleaning: Cleaning

    @property
    def output(self) -> str:
        return self.cleaning.output

    @property
    def marks(self) -> dict[str, str]:
        return {"manifest": storage.join(self.output, "manifest")}

    @property
    def stages(self) -> dict[str, ActorPool]:
        return {}

    def start(self, pool: ActorPool, held: lease.Watch) -> Make:
        """Networks on the actor's device. Images are written as they are cleaned, accounts when a unit is published."""
        clean = Cleaner(
            self.cleaning,
            pool.device,
            batch=pool.batch,
            batch_pixels=pool.batch_pixels,
            threads=pool.threads,
            check_lease=held.check,
        )

        def make(planned: PlannedUnit, unit: UnitContent, marks: AbstractSet[str]) -> Made:
            try:
                cleaned = clean(unit, quarantine.killers(self.cleaning, unit, held.attempt))
            except Exception as error:
                if pool.local or not quarantine.is_of_machine(error):
                    raise
                # Like a worker that the system ends for want of memory: two of them, and its inputs are looked at.
                log.tell(f"unit {unit.name}: {type(error).__name__}: {error}", stderr=True)
                os._exit(quarantine.OUT_OF_MEMORY)
            return Made(
                images=len(cleaned.rows) + len(cleaned.rejects),
                rejected=len(cleaned.rejects),
                publish=partial(accounts.publish, self.output, unit.name, cleaned),
                counts={"bytes_in": unit.size, "bytes_out": cleaned.bytes_out},
            )

        return make


def dry_run(config: CleaningConfig, resources: ActorPool, output: str) -> dict[str, Any]:
    """Count what would be cleaned, try a few images in this process, and estimate the time; the output is not touched.

    Raises:
        ValueError, FileNotFoundError: bad input.
    """
    config = _placed(config, output)
    with tempfile.TemporaryDirectory() as folder:
        work = Cleaning.load(config, folder)
        counts = _plan(config, folder, output=output)
        _warn(work, folder)
        tried, rejects, rate = _trial(work, resources, plan.sample(folder, 8 * TRIED))
        skipped = plan.generations(folder)[0].mark["skipped"]
    for reject in rejects:
        log.tell(formats.visible(f"rejected: {reject['id']}: {reject['reason']}"))
    return {
        "files": counts.files,
        "images": counts.images if not counts.tars else f"{counts.images}, and what {counts.tars} tar(s) hold",
        "size": formats.size(counts.size),
        "skipped_files": ", ".join(f"{count} {kind}" for kind, count in skipped.items()) or "none",
        "tried": tried,
        "rejected": len(rejects),
        "images_per_second": rate * resources.needs.count,
        "estimated": "unknown"
        if counts.tars or not rate
        else formats.duration(counts.images / rate / resources.needs.count),
    }


def _trial(work: Cleaning, resources: ActorPool, sample: UnitContent) -> tuple[int, list[dict[str, Any]], float]:
    """Clean a sample, a few inputs at a time, for ``TRIAL_SECONDS`` or so: images, rejects, and images a second."""
    cleaner = Cleaner(work, "cpu", batch=resources.batch, batch_pixels=resources.batch_pixels, threads=1)
    killers, _ = quarantine.inspect(sample, work.config.max_pixels, 2 * TRIED)
    rejects: list[dict[str, Any]] = []
    counts, seconds = [], []
    step = TRIED if sample.entries[0].kind == "image" else 1
    for start in range(0, len(sample.entries), step):
        began = time.perf_counter()
        few = UnitContent(name=f"sample-{start}", entries=sample.entries[start : start + step])
        cleaned = cleaner(few, killers, 2 * TRIED)
        rejects += cleaned.rejects
        counts.append(len(cleaned.rows) + len(cleaned.rejects))
        seconds.append(time.perf_counter() - began)
        if sum(seconds) > TRIAL_SECONDS:
            break
    # The first few are slow: the network is called for the first time.
    timed = slice(1 if len(counts) > 1 else 0, None)
    return sum(counts), rejects, sum(counts[timed]) / sum(seconds[timed])


def _warn(work: Cleaning, folder: str) -> list[str]:
    """Warn of what the first of the planned images tell; a few are decoded, and no more.

    Raises:
        ValueError: the purifier takes none of them.
    """
    purifier = work.purifier
    channels = channels_of(purifier, purifier.build(), "cpu")
    _, shapes = quarantine.inspect(plan.sample(folder, TRIED), work.config.max_pixels, TRIED)
    if shapes and not any(fits(shape[2], channels) for shape in shapes):
        raise ValueError(
            f"{purifier.name} takes images of {channels} channel(s), but the first images have {shapes[0][2]}: "
            "give a purifier that was trained for such images"
        )
    trained = tuple(purifier.config.get("image_shape", ()))[:2]
    sizes = sorted({shape[:2] for shape in shapes})
    cut = set(purifier.config.get("view", ())) == {"crop"}  # out of images at their own scale, as these are
    if not trained or cut or set(sizes) <= {trained}:
        return []
    shown = ", ".join(f"{height}x{width}" for height, width in sizes[:3]) + (", ..." if len(sizes) > 3 else "")
    warning = (
        f"{purifier.name} was trained on images of {trained[0]}x{trained[1]} pixels "
        f"({purifier.config.get('data', 'of unknown data')}); these are of {shown}: look at some before you use them"
    )
    log.tell(f"warning: {warning}", stderr=True)
    return [warning]


def _update(config: CleaningConfig, output: str) -> None:
    """Plan what is new or has changed."""
    entries = inputs.listed(config.input, output=output)
    changes = planner.update(output, entries, extension=config.extension)
    log.tell(f"update: {changes.new:,} new, {changes.changed:,} changed, {changes.gone:,} gone (their outputs stay)")
    if changes.unknown:
        unknown = "cleaned anew: their server tells of no ETag or Last-Modified, or is gone"
        log.tell(f"update: {changes.unknown:,} {unknown}")


def _plan(config: CleaningConfig, folder: str, *, output: str) -> Counts:
    """Freeze the listing of the input into ``folder``, as a run that writes to ``output`` would."""
    skipped: Counter[str] = Counter()
    entries = inputs.listed(config.input, output=output, skipped=skipped)
    return planner.freeze(folder, entries, extension=config.extension, limit=config.limit, skipped=skipped)
