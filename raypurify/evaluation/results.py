"""From scores to the summary: the figures of a cell, read from its Parquet files a few at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypurify import models, storage
from raypurify.evaluation.grid import EvaluationConfig, Grid
from raypurify.evaluation.masking import findings
from raypurify.metrics import COMPARISONS, METRICS, Metric, wilson_interval
from raypurify.runs import log, schema

CONFUSED = ("clean", "adversarial", "purified")
"""Images whose predictions are counted by their labels."""


def scores_folder(output: str, cell: str) -> str:
    """Where a cell's scores are: one Parquet file for each unit of rows."""
    return storage.join(output, "scores", f"cell={cell}")


def read_scores(output: str, cell: str, columns: Sequence[str]) -> pa.Table:
    """Some columns of all the rows of a cell."""
    urls = storage.list_files(scores_folder(output, cell), ".parquet")
    return storage.read_tables(urls, pa.schema([schema.SCORES.field(name) for name in columns]))


def distances_to_success(scores: pa.Table, clean: str, attacked: str, distance: str = "l2") -> np.ndarray:
    """How far an attack had to go, for each image that was right at first: infinitely, where it did not succeed.

    Args:
        scores: rows with ``label``, the distance, and the victim's own predictions.
        clean: column of those on the clean images.
        attacked: column of those on the attacked images.
        distance: column of the distance between the two images.
    """
    label = scores["label"].to_numpy()
    fooled = scores[attacked].to_numpy() != label
    distances: np.ndarray = np.where(fooled, scores[distance].to_numpy(), np.inf)[scores[clean].to_numpy() == label]
    return distances


def median_distance(distances: np.ndarray) -> float:
    """Median of :func:`distances_to_success`; infinity where no image was right at first."""
    return float(np.median(distances)) if distances.size else float("inf")


def earlier_cells(output: str) -> list[dict[str, Any]]:
    """Rows of ``schema.CELL``: what earlier calls on an output evaluated."""
    url = storage.join(output, "cells.parquet")
    cells: list[dict[str, Any]] = storage.read_table(url).to_pylist() if storage.exists(url) else []
    return cells


def merged_cells(earlier: Sequence[dict[str, Any]], grid: Grid) -> list[dict[str, Any]]:
    """Rows of ``schema.CELL``: those in the output, then this grid's new ones.

    An earlier cell leaves that reads like one of this grid and is another: its model, or its check, was changed.
    """
    own = {cell.hash: dict(cell.row) for cell in grid.cells}
    described = {_description(row) for row in own.values()}
    kept = [row for row in earlier if row["cell"] in own or _description(row) not in described]
    known = {row["cell"] for row in kept}
    return [own.get(row["cell"], row) for row in kept] + [row for name, row in own.items() if name not in known]


def _description(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """A cell as tables show it."""
    return tuple(row[name] for name in schema.CELL_DESCRIPTION)


def _totals(output: str, cell: Mapping[str, Any], more: Sequence[Metric]) -> _Totals:
    """A cell's scores, added up from a few files at a time.

    Raises:
        ValueError: the cell has no rows, or an id twice.
    """
    totals = _Totals(cell, (*METRICS, *more))
    for scores in _score_tables(output, cell["cell"], schema.scores(more)):
        totals.add(scores)
    _check_rows(totals.ids, cell)
    return totals


def _score_tables(output: str, cell: str, columns: pa.Schema) -> Iterator[pa.Table]:
    """A cell's rows, a few units at a time."""
    urls = storage.list_files(scores_folder(output, cell), ".parquet")
    for start in range(0, len(urls), storage.REQUESTS_AT_ONCE):
        yield storage.read_tables(urls[start : start + storage.REQUESTS_AT_ONCE], columns)


class _Totals:
    """What is kept of a cell's scores: sums, how many images of each label are taken for each class, the ids (they have
    to be unique), those of purified images that are wrong, and the distances (for their median)."""

    def __init__(self, cell: Mapping[str, Any], metrics: Sequence[Metric]) -> None:
        # An adaptive attacker's victim is the classifier behind the purifier.
        adaptive = cell["setting"] == "adaptive"
        self.victim = ("pred_clean_purified", "pred_purified") if adaptive else ("pred_clean", "pred_adversarial")
        self.attacked = cell["attack"] != schema.NO_ATTACK
        self.metrics = metrics
        self.n = 0
        self.sums: Counter[str] = Counter()
        self.known: Counter[str] = Counter()
        self.most: dict[str, float] = {}
        self.pairs: Counter[tuple[str, int, int]] = Counter()
        self.ids: list[pa.ChunkedArray] = []
        self.lost: list[pa.ChunkedArray] = []
        self.distances: dict[str, list[np.ndarray]] = {}

    def add(self, scores: pa.Table) -> None:
        """Count some rows of the scores."""
        for kind in ("clean", *COMPARISONS):
            self._sum(f"right_{kind}", pc.equal(scores[f"pred_{kind}"], scores["label"]))
        for kind in CONFUSED:
            self._add_pairs(kind, scores)
        for name in ("steps", "queries"):
            self._sum(name, scores[name])
            self._most(name, scores[name])
        for metric in self.metrics:
            self._add_metric(metric, scores)
        self._sum("zero_gradient", scores["zero_gradient"])
        self._add_detection(scores)
        self._add_draws(scores)
        for attack in schema.MASKING_ATTACKS:
            self._sum(f"right_{attack}", pc.equal(scores[f"pred_{attack}"], scores["label"]))
        self.ids.append(scores["id"])
        self.lost.append(scores["id"].filter(pc.not_equal(scores["pred_purified"], scores["label"])))
        self.n += len(scores)

    def _add_pairs(self, kind: str, scores: pa.Table) -> None:
        pairs = scores.group_by(["label", f"pred_{kind}"]).aggregate([([], "count_all")])
        for label, predicted, n in zip(*(column.to_pylist() for column in pairs.columns), strict=True):
            self.pairs[kind, label, predicted] += n

    def confusion(self, cell: str) -> list[dict[str, Any]]:
        """Rows of ``schema.CONFUSION``."""
        return [
            {"cell": cell, "kind": kind, "label": label, "predicted": predicted, "n": n}
            for (kind, label, predicted), n in sorted(self.pairs.items())
        ]

    def _add_metric(self, metric: Metric, scores: pa.Table) -> None:
        for column in metric.comparisons:
            if metric.total == "mean":
                self._sum(column, scores[column])
            elif metric.total == "max":
                self._most(column, scores[column])
            else:
                distances = distances_to_success(scores, *self.victim, column)
                self.distances.setdefault(column, []).append(distances)

    def _add_detection(self, scores: pa.Table) -> None:
        """A detected image is defended where it was attacked, and lost where it was not."""
        right = pc.equal(scores["pred_purified"], scores["label"])
        kept = pc.or_(right, scores["detected"]) if self.attacked else pc.and_not(right, scores["detected"])
        self._sum("with_detection", kept)
        self._sum("detected", scores["detected"])
        self._sum("detected_clean", scores["detected_clean"])

    def _add_draws(self, scores: pa.Table) -> None:
        self._sum("draws", scores["draws"])
        self._sum("right_draws", scores["right_draws"])
        self._sum("all_draws", pc.equal(scores["right_draws"], scores["draws"]))
        self._sum("majority", pc.equal(scores["pred_majority"], scores["label"]))

    def _sum(self, name: str, values: pa.ChunkedArray) -> None:
        known = values.drop_null()
        self.sums[name] += known.to_numpy().sum(dtype=np.float64)
        self.known[name] += len(known)

    def _most(self, name: str, values: pa.ChunkedArray) -> None:
        self.most[name] = max(self.most.get(name, 0), values.drop_null().to_numpy().max(initial=0))

    def _mean(self, name: str) -> float | None:
        return float(self.sums[name] / self.known[name]) if self.known[name] else None

    def figures(self) -> dict[str, Any]:
        """The columns of the summary beyond those of ``schema.CELL``."""
        accuracy = {kind: self.sums[f"right_{kind}"] / self.n for kind in ("clean", *COMPARISONS)}
        low, high = wilson_interval(int(self.sums["right_purified"]), self.n)
        return {
            "n": self.n,
            **{f"accuracy_{kind}": value for kind, value in accuracy.items()},
            "accuracy_purified_low": low,
            "accuracy_purified_high": high,
            "success_rate_eq14": accuracy["purified"] / accuracy["clean"] if accuracy["clean"] else None,
            **{column: value for metric in self.metrics for column, value in self._totals_of(metric).items()},
            "steps_mean": self._mean("steps"),
            "steps_max": int(self.most["steps"]),
            "queries_mean": self._mean("queries"),
            "queries_max": int(self.most["queries"]),
            **self._masking(),
            "detection_rate": self._mean("detected"),
            "false_alarm_rate": self._mean("detected_clean"),
            "accuracy_with_detection": self._mean("with_detection"),
            **self._draws(),
        }

    def _draws(self) -> dict[str, Any]:
        """What many draws of a random purifier came to."""
        draws = self._mean("draws")
        return {
            "draws": None if draws is None else int(draws),
            "accuracy_draws": None if draws is None else float(self.sums["right_draws"] / self.sums["draws"]),
            "accuracy_all_draws": self._mean("all_draws"),
            "accuracy_majority": self._mean("majority"),
        }

    def _totals_of(self, metric: Metric) -> dict[str, float | None]:
        if metric.total == "max":
            return {f"{metric.name}_max": float(self.most[metric.name])}
        if metric.total == "median":
            return {f"{metric.name}_median": median_distance(np.concatenate(self.distances[metric.name]))}
        means = {column: self._mean(column) for column in metric.comparisons}
        purified = means[f"{metric.name}_purified"]
        if metric.eq16_offset is not None:
            means[f"{metric.name}_purified_eq16"] = None if purified is None else purified + metric.eq16_offset
        return means

    def _masking(self) -> dict[str, Any]:
        """The share of zero gradients, and the figures of the check for masked ones, over the images checked."""
        figures = {"zero_gradient_share": self._mean("zero_gradient")}
        figures |= {f"accuracy_{attack}": self._mean(f"right_{attack}") for attack in schema.MASKING_ATTACKS}
        checked = self.known["right_multi_step"]
        return {"masking_n": checked, **figures, "masking": findings(figures) if checked else None}


def _check_rows(parts: Sequence[pa.ChunkedArray], cell: Mapping[str, Any]) -> None:
    ids = _joined(parts)
    if not len(ids):
        raise ValueError(f"cell {cell['cell']} has no scores: every image was rejected; see rejects/")
    if len(ids.unique()) != len(ids):
        counts = ids.value_counts().to_pylist()
        twice = next(entry["values"] for entry in counts if entry["counts"] > 1)
        raise ValueError(f"the id {twice!r} stands for more than one image; ids must be unique in a dataset")


def _joined(parts: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string())


class _WorstCases:
    """The images that are lost under any attack of those that agree in ``schema.WORST_OF``."""

    def __init__(self) -> None:
        self.lost: dict[tuple[Any, ...], pa.Array] = {}

    def add(self, cell: Mapping[str, Any], lost: Sequence[pa.ChunkedArray]) -> None:
        """Take in the ids of a cell's images that are wrong, where its attack has a ball."""
        if cell["eps"] is not None:
            known = self.lost.get(self._key(cell), pa.array([], pa.string()))
            self.lost[self._key(cell)] = _joined([pa.chunked_array([known]), *lost]).unique()

    def accuracy(self, cell: Mapping[str, Any], n: int) -> float | None:
        """The share of the ``n`` images that no attack of the cell's kind made wrong; None for one without a ball."""
        lost = self.lost.get(self._key(cell))
        return None if lost is None else (n - len(lost)) / n

    def _key(self, cell: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(cell[name] for name in schema.WORST_OF)


def write_summary(
    output: str,
    cells: Sequence[Mapping[str, Any]],
    required: AbstractSet[str],
    rows: int,
    more: Sequence[Metric] = (),
) -> pa.Table:
    """Write ``summary.parquet``, a row for each cell whose images are all there, and ``confusion.parquet``.

    Args:
        output: the run's folder.
        cells: rows of ``schema.CELL``.
        required: hashes of the cells that have to be whole; another may have been cut off in an earlier run.
        rows: images of the dataset that were not rejected.
        more: the user's metrics.

    Raises:
        RuntimeError: a required cell lacks rows; the message says how many.
    """
    summaries, confusion, worst = [], [], _WorstCases()
    for cell in cells:
        if not storage.list_files(scores_folder(output, cell["cell"]), ".parquet") and cell["cell"] not in required:
            continue
        totals = _totals(output, cell, more)
        if totals.n == rows:
            summaries.append({**cell, **totals.figures()})
            confusion += totals.confusion(cell["cell"])
            worst.add(cell, totals.lost)
        elif cell["cell"] in required:
            raise RuntimeError(f"{output}: cell {cell['cell']} has {totals.n} scores of {rows} images")
    for summary in summaries:
        summary["accuracy_worst"] = worst.accuracy(summary, rows)
    table = pa.Table.from_pylist(summaries, schema=schema.summary(more))
    storage.write_table(storage.join(output, "confusion.parquet"), pa.Table.from_pylist(confusion, schema.CONFUSION))
    storage.write_table(storage.join(output, "summary.parquet"), table)
    return table


def read_summary(output: str, cells: Sequence[str]) -> pa.Table:
    """The rows of ``summary.parquet`` of the cells with these hashes; null what an earlier version did not write."""
    summary = storage.read_table(storage.join(output, "summary.parquet"))
    more = [field for field in summary.schema if field.name not in schema.SUMMARY.names]
    summary = storage.with_columns(summary, pa.schema([*schema.SUMMARY, *more]))
    return summary.filter(pc.is_in(summary["cell"], pa.array(cells)))


def curves(config: EvaluationConfig) -> dict[str, pa.Table]:
    """The loss curves of the purifiers' trainings, where they lie in or beside the checkpoint.

    One that cannot be read is left out with a warning: it must not fail a finished evaluation.
    """
    curves = {}
    for text in config.purifiers:
        url = text.partition(",")[0].rstrip("/")
        if "/" not in url:
            continue
        try:
            for place in (url, url.rpartition("/")[0]):
                curve = storage.join(place, "metrics.parquet")
                if storage.exists(curve):
                    curves[models.load("purifier", text).name] = storage.read_tables([curve], schema.STEPS)
                    break
        except (OSError, ValueError) as error:
            log.tell(f"warning: the report lacks the loss curve of {text}: {error}")
    return curves
