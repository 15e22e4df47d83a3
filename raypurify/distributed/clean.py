"""Bulk cleaning on Ray Data: planned units stream through actors that read, purify, write and account for each."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pyarrow as pa
import ray

from raypurify import images, runs, storage
from raypurify.cleaning import accounts, inputs, plan, planner, quarantine
from raypurify.cleaning.cleaner import Cleaner, Cleaning, CleaningConfig, is_of_machine
from raypurify.cleaning.plan import Counts, Unit
from raypurify.cleaning.quarantine import first_look
from raypurify.distributed import cluster, streams
from raypurify.distributed.units import ENOUGH, ActorPool, check_rejects, set_threads, through
from raypurify.report import formats
from raypurify.report.cleaning import write_cleaning_report
from raypurify.runs import lease
from raypurify.runs.progress import Progress, print_table
from raypurify.storage import retries
from raypurify.storage.published import escaped, unescaped

DEATHS = 2
"""Workers that may end while they are at a unit before its inputs are looked at one by one."""
MOST_DEATHS = 10
"""Workers that may end at a unit: some end at the fault of another unit, or of none."""
REASONS = 20
"""Of rejects, that are printed."""
TRIED = 32
"""Images that are tried before the work; eight times as many in a dry run."""
TRIAL_SECONDS = 10
"""Of a dry run, about."""
POINTS = 100
"""Of the timeline, at least, once there are as many."""


@dataclass(frozen=True, kw_only=True)
class CleaningArguments:
    """Flags of the cleaning job."""

    cleaning: CleaningConfig
    resources: ActorPool = field(default_factory=ActorPool)
    destination: runs.Destination
    update: bool = False
    """Clean what is new or has changed in the input since it was planned; first what of the plan is not done."""
    max_rejects: float = 0.1
    """Stop when more than this share of the images is rejected, in [0, 1]; 1: never."""
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
        runs.check_max_rejects(self.max_rejects)


def main(arguments: CleaningArguments) -> None:
    """Clean images of any size and number, streamed by Ray Data: each ends up cleaned or in rejects, exactly once."""
    output = storage.absolute(arguments.destination.output)
    if arguments.dry_run:
        found = dry_run(arguments.cleaning, arguments.resources, output)
        print_table(pa.Table.from_pylist([found]))
        if found["rejected"] > arguments.max_rejects * found["tried"]:
            print(f"warning: by this sample the run would stop, by --max-rejects={arguments.max_rejects}")
        return
    totals = clean(
        arguments.cleaning,
        arguments.resources,
        output,
        update=arguments.update,
        max_rejects=arguments.max_rejects,
        overwrite=arguments.destination.overwrite,
        shared_filesystem=arguments.destination.shared_filesystem,
    )
    print_table(pa.Table.from_pylist([totals.shown()]))
    for reason, count in sorted(totals.reasons.items(), key=lambda item: -item[1])[:REASONS]:
        print(formats.visible(f"rejected: {count:,} x {reason}"))
    if totals.skipped:
        print(formats.visible(f"left alone, being hidden, no images, or named twice: {totals.left_alone}"))
    print(f"images: {storage.join(output, 'images')}\nreport: {storage.join(output, 'report.html')}")


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
        overwrite: start afresh.
        shared_filesystem: a local output is one that every host sees.

    Raises:
        ValueError, FileNotFoundError: bad input, another run's output, or one that is being written.
        StoppedError: too many rejects.
        RuntimeError: images that are in neither manifest nor rejects, or there twice.
    """
    output = storage.absolute(output)
    config = dataclasses.replace(config, input=inputs.absolute(config.input))
    mark = retries.counts()
    inputs.check_apart(config.input, output)
    work = Cleaning.load(config, output)
    runs.check_lasting(output)
    with lease.hold(output) as held:
        # The last bit of a pixel may turn on which images share a batch.
        identity = {**work.identity(), "batch": resources.batch}
        run = runs.open_run(output, identity, overwrite=overwrite, held=held)
        is_whole = run.finished and accounts.is_complete(output)
        if is_whole and not update:
            print("already finished: nothing is left to do; --update looks for what is new or has changed")
            return accounts.add_up(output)
        is_behind = update and not is_whole and bool(plan.generations(output))
        with _nothing_left(output, is_new=not run.attempts):
            run.begin()
            if is_whole:
                _update(config, output)
            else:
                _plan(config, output, output=output)
            run.counts["warnings"] = _warn(work, output)
        storage.remove(storage.join(output, storage.SUCCESS))
        hardware = cluster.connect(resources.needs)
        cluster.check_output(output, shared_filesystem=shared_filesystem)
        with run.attempt(hardware, dataclasses.asdict(resources)):
            counts = Tally(mark)
            try:
                if is_behind:
                    print("update: first what an earlier command has planned and not done")
                    # Its rejects are not judged: the update may mend them.
                    _stream(work, resources, counts, 1.0, held)
                    _update(config, output)
                _stream(work, resources, counts, max_rejects, held)
            finally:
                run.counts.update(counts.shown())
            held.check()
            storage.remove(storage.join(output, "starts"))
            storage.remove_drafts(output)
            accounts.retire(output)
            totals = accounts.add_up(output)
            check_rejects(output, totals.rejected, totals.n, max_rejects)
        held.check()
        write_cleaning_report(output, totals, accounts.read_changes(output, totals))
        run.finish()
    return totals


@contextmanager
def _nothing_left(output: str, *, is_new: bool) -> Iterator[None]:
    """Let an input that is refused before a run's first attempt leave nothing that the next command would run into."""
    try:
        yield
    except (ValueError, FileNotFoundError):
        if is_new:
            for name in ("plan", "run.json"):
                storage.remove(storage.join(output, name))
        raise


class Tally:
    """What an attempt has done so far, for ``run.json``."""

    def __init__(self, mark: dict[str, int]) -> None:
        """``mark``: this process' requests so far."""
        self.mark = mark
        self.sums = dict.fromkeys(("in", "out", "rejected", "bytes_in", "bytes_out", "requests", "retries"), 0)
        self.timeline: list[tuple[float, int]] = []
        self.started, self.first, self.last = time.time(), math.inf, 0.0

    def add(self, row: dict[str, Any]) -> None:
        """Add what an actor says of a unit."""
        for name in self.sums:
            self.sums[name] += row[name]
        self.first, self.last = min(self.first, row["started"]), max(self.last, row["ended"])
        self.timeline[:1] = [(round(self.first - self.started, 1), 0)]
        self.timeline.append((round(self.last - self.started, 1), self.sums["in"]))
        if len(self.timeline) > 2 * POINTS:
            del self.timeline[1:-1:2]

    def shown(self) -> dict[str, Any]:
        """As ``run.json`` has it."""
        seconds = max(self.last - self.first, 1e-9)
        rate = {"images_per_second": round(self.sums["in"] / seconds, 1)} if self.sums["in"] else {}
        mine = {name: self.sums[name] + count for name, count in retries.since(self.mark).items()}
        return {**self.sums, **mine, **rate, "timeline": self.timeline}


def _stream(work: Cleaning, pool: ActorPool, counts: Tally, max_rejects: float, held: lease.Lease) -> None:
    """Clean the units that are not accounted for, and count.

    Raises:
        StoppedError: more than ``max_rejects`` of the images are rejected.
    """
    done = accounts.finished_units(work.output)
    todo = [unit for unit in plan.units(work.output) if unit.name not in done]
    if not todo:
        return
    blocks = streams.read_blocks(
        [(unit.name, unit.part) for unit in todo], _block, name="Units", read_cpus=0, ordered=False
    )
    known = all(unit.images is not None for unit in todo)
    total = sum(unit.images or 0 for unit in todo) if known else 0
    n = rejected = 0
    with Progress("cleaning", total=total, unit="images") as progress:
        for row in through(CleaningActor, (work, held.attempt, pool), blocks, len(todo), pool):
            held.check()
            counts.add(row)
            n, rejected = n + row["in"], rejected + row["rejected"]
            progress.advance(row["in"], note=f"{rejected:,} rejected" if rejected else "", began=row["started"])
            if n >= ENOUGH:
                check_rejects(work.output, rejected, n, max_rejects)


def _block(unit: str, part: str) -> pa.Table:
    """The block that names a unit, and the file of the plan that holds it."""
    return pa.table({"unit": [unit], "part": [escaped(part)]})


class CleaningActor:
    """Cleans the unit that a block names."""

    def __init__(self, reference: ray.ObjectRef[tuple[Cleaning, str, ActorPool]]) -> None:
        self.work, self.attempt, pool = ray.get(reference)
        set_threads(pool)
        self.read = lru_cache(maxsize=2)(plan.read_part)
        self.held = lease.Watch(self.work.output, self.attempt)
        self.clean = Cleaner(
            self.work, pool.device, batch=pool.batch, threads=pool.cpus_per_actor, check_lease=self.held.check
        )

    def __call__(self, block: pa.Table) -> pa.Table:
        """Clean one unit, and account for it.

        Returns:
            One row: ``in``, ``out``, ``rejected`` (images), ``bytes_in``, ``bytes_out``, ``requests``, ``retries``,
            ``started`` and ``ended`` (seconds of the clock).
        """
        started, before = time.time(), retries.counts()
        self.held.check()
        unit = plan.unit_in(self.read(unescaped(block["part"][0].as_py())), block["unit"][0].as_py())
        try:
            cleaned = self.clean(unit, self._killers(unit))
        except Exception as error:
            if not is_of_machine(error):
                raise
            # Like a worker that the system ends for want of memory: two of them, and its inputs are looked at.
            print(f"unit {unit.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(quarantine.OUT_OF_MEMORY)
        lease.check(self.work.output, self.attempt)
        accounts.publish(self.work.output, unit.name, cleaned)
        row: dict[str, Any] = {
            "in": len(cleaned.rows) + len(cleaned.rejects),
            "out": len(cleaned.rows),
            "rejected": len(cleaned.rejects),
            "bytes_in": unit.size,
            "bytes_out": cleaned.bytes_out,
            **retries.since(before),
            "started": started,
            "ended": time.time(),
        }
        return pa.Table.from_pylist([row])

    def _killers(self, unit: Unit) -> dict[str, str]:
        """Look at a unit's inputs one by one, if workers of this attempt have ended while they were at it.

        Raises:
            RuntimeError: they ended although each of its inputs can be cleaned.
        """
        url = storage.join(self.work.output, "starts", self.attempt, f"{unit.name}.json")
        starts = storage.read_json(url) if storage.exists(url) else 0
        if starts > MOST_DEATHS:
            raise RuntimeError(
                f"unit {unit.name}: its worker has ended {starts} times, but each of its inputs can be cleaned alone: "
                "is there enough memory for a worker? The dashboard's log of the actor says how it ended"
            )
        storage.write_json(url, starts + 1)
        if starts < DEATHS:
            return {}
        return quarantine.inspect(unit, self.work.config.max_pixels, work=self.work).killers


def dry_run(config: CleaningConfig, resources: ActorPool, output: str) -> dict[str, Any]:
    """Count what would be cleaned, try a few images in this process, and estimate the time; the output is not touched.

    Raises:
        ValueError, FileNotFoundError: bad input.
    """
    config = dataclasses.replace(config, input=inputs.absolute(config.input))
    inputs.check_apart(config.input, output)
    with tempfile.TemporaryDirectory() as folder:
        work = Cleaning.load(config, folder)
        counts = _plan(config, folder, output=output)
        _warn(work, folder)
        tried, rejects, rate = _trial(work, resources, plan.sample(folder, 8 * TRIED))
        skipped = plan.skipped_files(folder)
    for reject in rejects:
        print(formats.visible(f"rejected: {reject['id']}: {reject['reason']}"))
    return {
        "files": counts.files,
        "images": counts.images if not counts.tars else f"{counts.images}, and what {counts.tars} tar(s) hold",
        "size": formats.size(counts.size),
        "skipped_files": ", ".join(f"{count} {kind}" for kind, count in skipped.items()) or "none",
        "tried": tried,
        "rejected": len(rejects),
        "images_per_second": rate * resources.actors,
        "estimated": "unknown"
        if counts.tars or not rate
        else formats.duration(counts.images / rate / resources.actors),
    }


def _trial(work: Cleaning, resources: ActorPool, sample: Unit) -> tuple[int, list[dict[str, Any]], float]:
    """Clean a sample, a few inputs at a time, for ``TRIAL_SECONDS`` or so: images, rejects, and images a second."""
    cleaner = Cleaner(work, "cpu", batch=resources.batch, threads=1)
    killers = quarantine.inspect(sample, work.config.max_pixels, 2 * TRIED).killers
    rejects: list[dict[str, Any]] = []
    counts, seconds = [], []
    step = TRIED if sample.entries[0].kind == "image" else 1
    for start in range(0, len(sample.entries), step):
        began = time.perf_counter()
        few = Unit(name=f"sample-{start}", entries=sample.entries[start : start + step])
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
    """Warn of what the first images tell."""
    warnings = first_look(work, plan.sample(folder, TRIED), TRIED)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return warnings


def _update(config: CleaningConfig, output: str) -> None:
    """Plan what is new or has changed."""
    entries = inputs.listed(config.input, output=output)
    changes = planner.update(output, entries, extension=images.FORMATS[config.format].extension)
    print(f"update: {changes.new:,} new, {changes.changed:,} changed, {changes.gone:,} gone (their outputs stay)")
    if changes.unknown:
        print(f"update: {changes.unknown:,} cleaned anew: their server tells of no ETag or Last-Modified, or is gone")


def _plan(config: CleaningConfig, folder: str, *, output: str) -> Counts:
    """Freeze the listing of the input into ``folder``, as a run that writes to ``output`` would."""
    skipped: Counter[str] = Counter()
    entries = inputs.listed(config.input, output=output, skipped=skipped)
    extension = images.FORMATS[config.format].extension
    return planner.freeze(folder, entries, extension=extension, limit=config.limit, skipped=skipped)
