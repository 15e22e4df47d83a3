"""From scores to the summary: the figures of a cell, read from its Parquet files a few at a time."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypurify import metrics, storage
from raypurify.evaluation.masking import findings
from raypurify.runs import schema
from raypurify.seeds import seed_of

SAMPLES_AT_RANDOM = 2
"""Images of each cell that the report shows, picked by the seed."""
SAMPLES_WORST = 2
"""Images of each cell that the report shows because purification restored them worst."""


def scores_folder(output: str, cell: str) -> str:
    """Where a cell's scores are: one Parquet file for each unit of rows."""
    return storage.join(output, "scores", f"cell={cell}")


def read_scores(output: str, cell: str, columns: Sequence[str]) -> pa.Table:
    """Some columns of all the rows of a cell."""
    urls = storage.list_files(scores_folder(output, cell), ".parquet")
    return storage.read_tables(urls, pa.schema([schema.SCORES.field(name) for name in columns]))


def distances_to_success(scores: pa.Table, clean: str, attacked: str) -> np.ndarray:
    """How far an attack had to go, for each image that was right at first: infinitely, where it did not succeed.

    Args:
        scores: rows with ``label``, ``l2``, and the victim's own predictions.
        clean: column of those on the clean images.
        attacked: column of those on the attacked images.
    """
    label = scores["label"].to_numpy()
    fooled = scores[attacked].to_numpy() != label
    distances: np.ndarray = np.where(fooled, scores["l2"].to_numpy(), np.inf)[scores[clean].to_numpy() == label]
    return distances


def median_distance(distances: np.ndarray) -> float:
    """Median of :func:`distances_to_success`; infinity where no image was right at first."""
    return float(np.median(distances)) if distances.size else float("inf")


def summarise(output: str, cell: Mapping[str, Any]) -> dict[str, Any]:
    """One row of ``schema.SUMMARY``, from a few files at a time.

    Args:
        output: the run's folder.
        cell: the cell's row of ``schema.CELL``.

    Raises:
        ValueError: the cell has no rows, or an id twice.
    """
    totals = _Totals(adaptive=cell["setting"] == "adaptive")
    for scores in _score_tables(output, cell["cell"], [name for name in schema.SCORES.names if name != "detected"]):
        totals.add(scores)
    _check_rows(totals.ids, cell)
    return {**cell, **totals.figures()}


def _score_tables(output: str, cell: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of a cell, a few units at a time."""
    urls = storage.list_files(scores_folder(output, cell), ".parquet")
    wanted = pa.schema([schema.SCORES.field(name) for name in columns])
    for start in range(0, len(urls), storage.REQUESTS_AT_ONCE):
        yield storage.read_tables(urls[start : start + storage.REQUESTS_AT_ONCE], wanted)


class _Totals:
    """What is kept of a cell's scores: sums, the ids (they have to be unique) and the distances (for their median)."""

    def __init__(self, *, adaptive: bool) -> None:
        # An adaptive attacker's victim is the classifier behind the purifier.
        self.victim = ("pred_clean_purified", "pred_purified") if adaptive else ("pred_clean", "pred_adversarial")
        self.n = 0
        self.sums: Counter[str] = Counter()
        self.most: dict[str, float] = {"linf": 0.0, "steps": 0, "queries": 0}
        self.ids: list[pa.ChunkedArray] = []
        self.distances: list[np.ndarray] = []

    def add(self, scores: pa.Table) -> None:
        """Count some rows of ``schema.SCORES``."""
        label = scores["label"].to_numpy()
        right = {kind: scores[f"pred_{kind}"].to_numpy() == label for kind in ("clean", *schema.COMPARISONS)}
        for kind, hits in right.items():
            self.sums[f"right_{kind}"] += int(hits.sum())
        for name in ("steps", "queries", *(f"psnr_{kind}" for kind in schema.COMPARISONS)):
            self.sums[name] += scores[name].to_numpy().sum(dtype=np.float64)
        for name in (f"ssim_{kind}" for kind in schema.COMPARISONS):
            known = scores[name].drop_null().to_numpy()
            self.sums[name] += known.sum(dtype=np.float64)
            self.sums[f"{name}_known"] += len(known)
        for name, value in self.most.items():
            self.most[name] = max(value, scores[name].to_numpy().max(initial=0))
        self.distances.append(distances_to_success(scores, *self.victim))
        self.sums["zero_gradient"] += pc.sum(scores["zero_gradient"]).as_py() or 0
        self.sums["zero_gradient_known"] += len(scores) - scores["zero_gradient"].null_count
        self._add_masking(scores.filter(scores["pred_multi_step"].is_valid()))
        self.ids.append(scores["id"])
        self.n += len(scores)

    def _add_masking(self, checked: pa.Table) -> None:
        self.sums["masking_n"] += len(checked)
        for attack in schema.MASKING_ATTACKS:
            hits = pc.equal(checked[f"pred_{attack}"], checked["label"])
            self.sums[f"masking_{attack}"] += pc.sum(hits).as_py() or 0
            self.sums[f"masking_{attack}_known"] += len(hits) - hits.null_count

    def figures(self) -> dict[str, Any]:
        """The columns of ``schema.SUMMARY`` beyond those of ``schema.CELL``."""
        accuracy = {kind: self.sums[f"right_{kind}"] / self.n for kind in ("clean", *schema.COMPARISONS)}
        low, high = metrics.wilson_interval(int(self.sums["right_purified"]), self.n)
        psnr = {f"psnr_{kind}": self.sums[f"psnr_{kind}"] / self.n for kind in schema.COMPARISONS}
        return {
            "n": self.n,
            **{f"accuracy_{kind}": value for kind, value in accuracy.items()},
            "accuracy_purified_low": low,
            "accuracy_purified_high": high,
            "success_rate_eq14": accuracy["purified"] / accuracy["clean"] if accuracy["clean"] else None,
            **psnr,
            **{f"ssim_{kind}": self._share(f"ssim_{kind}", f"ssim_{kind}_known") for kind in schema.COMPARISONS},
            "psnr_purified_eq16": psnr["psnr_purified"] + metrics.PSNR_EQ16_OFFSET,
            "linf_max": float(self.most["linf"]),
            "l2_median": median_distance(np.concatenate(self.distances)),
            "steps_mean": self.sums["steps"] / self.n,
            "steps_max": int(self.most["steps"]),
            "queries_mean": self.sums["queries"] / self.n,
            "queries_max": int(self.most["queries"]),
            **self._masking(),
        }

    def _masking(self) -> dict[str, Any]:
        """The share of zero gradients, and the figures of the check for masked ones, over the images checked."""
        figures = {"zero_gradient_share": self._share("zero_gradient", "zero_gradient_known")}
        for attack in schema.MASKING_ATTACKS:
            figures[f"accuracy_{attack}"] = self._share(f"masking_{attack}", f"masking_{attack}_known")
        checked = int(self.sums["masking_n"])
        return {"masking_n": checked, **figures, "masking": findings(figures) if checked else None}

    def _share(self, name: str, count: str) -> float | None:
        return float(self.sums[name] / self.sums[count]) if self.sums[count] else None


def _check_rows(parts: Sequence[pa.ChunkedArray], cell: Mapping[str, Any]) -> None:
    ids = pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string())
    if not len(ids):
        raise ValueError(f"cell {cell['cell']} has no scores: every image was rejected; see rejects/")
    if len(ids.unique()) != len(ids):
        counts = ids.value_counts().to_pylist()
        twice = next(entry["values"] for entry in counts if entry["counts"] > 1)
        raise ValueError(f"the id {twice!r} stands for more than one image; ids must be unique in a dataset")


def write_summary(output: str, cells: Sequence[Mapping[str, Any]], required: AbstractSet[str], rows: int) -> pa.Table:
    """Write ``summary.parquet``: a row for each cell whose images are all there.

    Args:
        output: the run's folder.
        cells: rows of ``schema.CELL``.
        required: hashes of the cells that have to be whole; another may have been cut off in an earlier run.
        rows: images of the dataset that were not rejected.

    Raises:
        RuntimeError: a required cell lacks rows; the message says how many.
    """
    summaries = []
    for cell in cells:
        if not storage.list_files(scores_folder(output, cell["cell"]), ".parquet") and cell["cell"] not in required:
            continue
        summary = summarise(output, cell)
        if summary["n"] == rows:
            summaries.append(summary)
        elif cell["cell"] in required:
            raise RuntimeError(f"{output}: cell {cell['cell']} has {summary['n']} scores of {rows} images")
    table = pa.Table.from_pylist(summaries, schema=schema.SUMMARY)
    storage.write_table(storage.join(output, "summary.parquet"), table)
    return table


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image that the report shows: in which unit it is, and why: "random", or "worst"."""

    id: str
    unit: str
    kind: str


def choose_samples(output: str, cell: str, seed: int) -> list[Sample]:
    """A few images of a cell: those with the lowest PSNR once purified, and some drawn by the seed and their ids."""
    columns = pa.schema([schema.SCORES.field(name) for name in ("id", "psnr_purified")])
    worst: list[tuple[float, str, str]] = []
    drawn: list[tuple[int, str, str]] = []
    for url in storage.list_files(scores_folder(output, cell), ".parquet"):
        unit = storage.stem(url)
        table = storage.read_tables([url], columns)
        rows = zip(table["id"].to_pylist(), table["psnr_purified"].to_pylist(), strict=True)
        named = [(psnr, name, unit) for name, psnr in rows]
        worst = heapq.nsmallest(SAMPLES_WORST, [*worst, *named])
        drawn = heapq.nsmallest(
            SAMPLES_AT_RANDOM, [*drawn, *((seed_of(seed, "sample", name), name, unit) for _, name, _ in named)]
        )
    kinds = {(name, unit): "worst" for _, name, unit in worst} | {(name, unit): "random" for _, name, unit in drawn}
    return [Sample(id=name, unit=unit, kind=kind) for (name, unit), kind in kinds.items()]
