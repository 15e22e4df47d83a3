"""What became of each input: noted image by image, written unit by unit, and added up at the end."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypurify import images, storage
from raypurify.cleaning import plan
from raypurify.cleaning.reader import Item
from raypurify.images import Picture
from raypurify.runs import schema
from raypurify.runs.reasons import Reasons
from raypurify.storage.bounded import Digests, TableSpool, concurrently, digests_of
from raypurify.storage.published import published

MEASURES = ("psnr", "ssim", "linf")
MOST_CHANGED = 12
"""How many of the most changed images the report shows."""
CHANGES = 4
"""How many images of a unit are kept for the report."""
THUMBNAIL = 256
"""The longest side of an image that is kept, in pixels."""
READS_AT_ONCE = 8
PARTS = {"manifest": schema.MANIFEST, "rejects": schema.REJECTS}
"""Folders of accounts, and the columns of their files."""
RETIRED = "_RETIRED"
"""A file in a generation's folder: what the generation took the place of is no longer in the accounts."""


class Cleaned:
    """What became of a unit."""

    def __init__(self) -> None:
        self.rows, self.rejects = TableSpool(schema.MANIFEST), TableSpool(schema.REJECTS)
        self.changes: list[dict[str, Any]] = []
        """The most changed images, small: rows of ``schema.CHANGES``."""
        self.bytes_out = 0

    def add(self, item: Item, size: int, **columns: Any) -> None:
        """Note a cleaned image, with the bytes of its file, and columns of ``schema.MANIFEST`` that no item tells."""
        self.bytes_out += size
        self._keep_if_most_changed(item)
        height, width, channels = cast(Picture, item.picture).pixels.shape
        columns |= {"id": item.id, "source": item.entry.url, "width": width, "height": height, "channels": channels}
        self.rows.append(published(columns | item.measures))

    def reject(self, item: Item) -> None:
        """Note a reject."""
        row = {"id": item.id, "url": item.entry.url, "stage": item.stage, "reason": item.reason}
        self.rejects.append(published(row))

    def _keep_if_most_changed(self, item: Item) -> None:
        order = (item.measures["psnr"], item.id)
        if len(self.changes) == CHANGES and order > (self.changes[-1]["psnr"], self.changes[-1]["id"]):
            return
        before, after = cast(Picture, item.picture).pixels, cast(NDArray[np.uint8], item.cleaned)
        small = {"input": images.thumbnail(before, THUMBNAIL), "cleaned": images.thumbnail(after, THUMBNAIL)}
        self.changes.append({"id": item.id, "psnr": item.measures["psnr"], **small})
        self.changes.sort(key=lambda change: (change["psnr"], change["id"]))
        del self.changes[CHANGES:]


@dataclass(kw_only=True)
class Totals:
    """All that a cleaning made of its input."""

    cleaned: int = 0
    rejected: int = 0
    psnr: float | None = None
    """Mean over the cleaned images, dB; likewise ``ssim``, ``linf``."""
    ssim: float | None = None
    linf: float | None = None
    unchanged: int = 0
    """Images that came out as they went in, by every 8-bit pixel."""
    relabelled: int | None = None
    """Images that the classifier took for something else afterwards; None without a classifier."""
    detected: int | None = None
    """Images on which the classifier's vote in noise abstained; None without a vote."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Rejects by reason; where reasons differ in numbers and details only, as one without them."""
    skipped: dict[str, int] = field(default_factory=dict)
    """What the listing passed over: files of other kinds, by extension, and duplicate lines of a list."""
    most_changed: list[dict[str, Any]] = field(default_factory=list)
    """Rows of ``schema.MANIFEST`` and their ``unit``, the lowest PSNR first, a few of a unit at most."""

    @property
    def left_alone(self) -> str:
        """What was passed over, as a sentence names it."""
        return ", ".join(f"{count:,} {kind}" for kind, count in self.skipped.items())

    @property
    def n(self) -> int:
        return self.cleaned + self.rejected

    def shown(self) -> dict[str, Any]:
        """What the job prints."""
        figures = {name: getattr(self, name) for name in ("psnr", "ssim", "linf", "relabelled", "detected")}
        counts = {"inputs": self.n, "cleaned": self.cleaned, "rejected": self.rejected, "unchanged": self.unchanged}
        return {**counts, **{name: value for name, value in figures.items() if value is not None}}


def publish(output: str, unit: str, cleaned: Cleaned) -> None:
    """Write a unit's accounts: rejects first, for the manifest's file says that the unit is done."""
    rejects = storage.join(output, "rejects", f"{unit}.parquet")
    if cleaned.rejects:
        storage.write_file(rejects, cleaned.rejects.sealed())
    else:
        storage.remove(rejects)  # of an attempt that was cut off, and could not read what now it could
    changes = pa.Table.from_pylist(published(cleaned.changes), schema.CHANGES)
    storage.write_table(storage.join(output, "samples", f"{unit}.parquet"), changes)
    storage.write_file(storage.join(output, "manifest", f"{unit}.parquet"), cleaned.rows.sealed())


def add_up(output: str) -> Totals:
    """Add the accounts of all units up, and hold them against the plan; a few dozen units are in memory at a time.

    Raises:
        ValueError: there is no plan.
        RuntimeError: an input is in neither manifest nor rejects, or is there twice; names the unit.
    """
    totals, ids, reasons = Totals(skipped=plan.require_generations(output)[0].mark["skipped"]), Digests(), Reasons()
    sums: Counter[str] = Counter()
    units = concurrently(lambda unit: _accounts(output, unit.name), plan.units(output), at_once=READS_AT_ONCE)
    for unit, tables in units:
        manifest, rejects = cast(dict[str, pa.Table], tables).values()
        if unit.images is not None and len(manifest) + len(rejects) != unit.images:
            found = f"{len(manifest)} cleaned and {len(rejects)} rejected"
            raise RuntimeError(f"{output}, unit {unit.name}: {found}, of {unit.images} images")
        ids.update(digests_of(manifest["id"].to_pylist() + rejects["id"].to_pylist()))
        sums.update(_sums(manifest))
        totals.cleaned += len(manifest)
        totals.rejected += len(rejects)
        reasons.add(rejects["reason"].to_pylist())
        shown = manifest.sort_by([("psnr", "ascending"), ("id", "ascending")]).slice(0, CHANGES).to_pylist()
        changed = totals.most_changed + [{**row, "unit": unit.name} for row in shown]
        totals.most_changed = heapq.nsmallest(MOST_CHANGED, changed, key=lambda row: (row["psnr"], row["id"]))
    if ids.seal().collisions():
        raise RuntimeError(f"{output}: an image is accounted for twice; see the ids in manifest/ and rejects/")
    for name in MEASURES:
        setattr(totals, name, sums[name] / sums[f"{name}_n"] if sums[f"{name}_n"] else None)
    totals.unchanged = sums["unchanged"]
    totals.relabelled = sums["relabelled"] if sums["labelled"] else None
    totals.detected = sums["detected"] if sums["voted"] else None
    totals.reasons = reasons.counts()
    return totals


def _sums(manifest: pa.Table) -> dict[str, Any]:
    """Sums of what was measured, and over how many images; how many came out unchanged, and with another label."""
    sums: dict[str, Any] = {"unchanged": int((manifest["linf"].to_numpy() == 0).sum())}
    for name in MEASURES:
        column = manifest[name].drop_null().to_numpy().astype(np.float64)
        sums |= {name: float(column.sum()), f"{name}_n": len(column)}
    labels = manifest.select(["pred_input", "pred_cleaned"]).drop_null()
    relabelled = int((labels["pred_input"].to_numpy() != labels["pred_cleaned"].to_numpy()).sum())
    votes = manifest["detected"].drop_null().to_pylist()
    return {**sums, "labelled": len(labels), "relabelled": relabelled, "voted": len(votes), "detected": sum(votes)}


def read_changes(output: str, totals: Totals) -> list[dict[str, Any]]:
    """Rows of ``schema.CHANGES``: the most changed images of all."""
    found = []
    for unit in sorted({row["unit"] for row in totals.most_changed}):
        wanted = {row["id"] for row in totals.most_changed if row["unit"] == unit}
        rows = storage.read_table(storage.join(output, "samples", f"{unit}.parquet")).to_pylist()
        found += [row for row in rows if row["id"] in wanted]
    return sorted(found, key=lambda row: (row["psnr"], row["id"]))


def retire(output: str) -> None:
    """Take inputs that a later generation has done anew out of the accounts of the units that did them first.

    Outputs of theirs that nothing writes any more, as when a Parquet file is cut into fewer ranges, are removed. A mark
    in the generation's folder says that it is done.
    """
    later = plan.generations(output)[1:]
    new = [generation for generation in later if not storage.exists(storage.join(generation.folder, RETIRED))]
    if not new:
        return
    for generation in new:
        for entry, is_stale in generation.replaced():
            if is_stale:
                storage.remove(storage.join(output, "images", entry.output))
    touched = plan.replanned_units(output, since=new[0].number)
    deque(concurrently(lambda item: _keep(output, *item), touched, at_once=READS_AT_ONCE), maxlen=0)
    for generation in new:
        storage.write_bytes(storage.join(generation.folder, RETIRED), b"")


def _keep(output: str, unit: str, live: set[str]) -> None:
    """Keep a unit's accounts of ``live`` image files. Other inputs are units of their own: all or nothing of one is."""
    for part, table in _accounts(output, unit).items():
        keep = [name in live for name in table["id"].to_pylist()]
        if not all(keep):
            kept = table.filter(pa.array(keep, pa.bool_()))
            storage.write_table(storage.join(output, part, f"{unit}.parquet"), kept)


def _accounts(output: str, unit: str) -> dict[str, pa.Table]:
    """A unit's manifest and its rejects."""
    tables = {}
    for part, columns in PARTS.items():
        try:
            table = storage.read_table(storage.join(output, part, f"{unit}.parquet"))
            tables[part] = storage.with_columns(table, columns)
        except FileNotFoundError as error:
            if part == "manifest":
                raise RuntimeError(f"{output}: unit {unit} is planned, but not accounted for in manifest/") from error
            tables[part] = columns.empty_table()
    return tables
