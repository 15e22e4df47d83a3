"""From scores to the summary: the figures of a cell, read from its Parquet files a few at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypurify import metrics, schema, storage
from raypurify.masking import findings

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


def summarise(output: str, cell: Mapping[str, Any]) -> dict[str, Any]:
    """One row of ``schema.SUMMARY``.

    Args:
        output: the run's folder.
        cell: the cell's row of ``schema.CELL``.

    Raises:
        ValueError: the cell has no rows, or an id twice.
    """
    scores = read_scores(output, cell["cell"], [name for name in schema.SCORES.names if name != "detected"])
    _check_rows(scores["id"], cell)
    checks = {"zero_gradient", *(f"pred_{attack}" for attack in schema.MASKING_ATTACKS)}
    values = {name: scores[name].to_numpy() for name in scores.column_names if name != "id" and name not in checks}
    n, label = len(scores), values["label"]
    right = {kind: values[f"pred_{kind}"] == label for kind in ("clean", *schema.COMPARISONS)}
    accuracy = {kind: float(hits.mean()) for kind, hits in right.items()}
    low, high = metrics.wilson_interval(int(right["purified"].sum()), n)
    psnr = {f"psnr_{kind}": float(values[f"psnr_{kind}"].astype(float).mean()) for kind in schema.COMPARISONS}
    ssim = {f"ssim_{kind}": _mean_of_known(values[f"ssim_{kind}"].astype(float)) for kind in schema.COMPARISONS}
    return {
        **cell,
        "n": n,
        **{f"accuracy_{kind}": value for kind, value in accuracy.items()},
        "accuracy_purified_low": low,
        "accuracy_purified_high": high,
        "success_rate_eq14": accuracy["purified"] / accuracy["clean"] if accuracy["clean"] else None,
        **psnr,
        **ssim,
        "psnr_purified_eq16": psnr["psnr_purified"] + metrics.PSNR_EQ16_OFFSET,
        "linf_max": float(values["linf"].max()),
        "l2_median": _median_l2(values["l2"], right["clean"], right["adversarial"]),
        "steps_mean": float(values["steps"].mean()),
        "steps_max": int(values["steps"].max()),
        "queries_mean": float(values["queries"].mean()),
        "queries_max": int(values["queries"].max()),
        **_masking(scores.filter(scores["zero_gradient"].is_valid())),
    }


def _masking(checked: pa.Table) -> dict[str, Any]:
    """The figures of the check for masked gradients, over the images that were checked."""
    figures: dict[str, float | None] = {"zero_gradient_share": _share(checked["zero_gradient"])}
    for attack in schema.MASKING_ATTACKS:
        figures[f"accuracy_{attack}"] = _share(pc.equal(checked[f"pred_{attack}"], checked["label"]))
    return {"masking_n": len(checked), **figures, "masking": findings(figures) if len(checked) else None}


def _share(flags: pa.ChunkedArray) -> float | None:
    share: float | None = pc.mean(flags).as_py()
    return share


def _check_rows(ids: pa.ChunkedArray, cell: Mapping[str, Any]) -> None:
    if not len(ids):
        raise ValueError(f"cell {cell['cell']} has no scores: every image was rejected; see rejects/")
    if len(ids.unique()) != len(ids):
        counts = ids.value_counts().to_pylist()
        twice = next(entry["values"] for entry in counts if entry["counts"] > 1)
        raise ValueError(f"the id {twice!r} stands for more than one image; ids must be unique in a dataset")


def _mean_of_known(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def _median_l2(l2: np.ndarray, clean_right: np.ndarray, still_right: np.ndarray) -> float:
    """Over the images that the classifier got right at first; an attack that failed counts as infinite."""
    if not clean_right.any():
        return float("inf")
    return float(np.median(np.where(still_right, np.inf, l2)[clean_right]))


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
    """A few images of a cell: those with the lowest PSNR once purified, and some at random."""
    urls = storage.list_files(scores_folder(output, cell), ".parquet")
    columns = pa.schema([schema.SCORES.field(name) for name in ("id", "psnr_purified")])
    units = {url.rpartition("/")[2].removesuffix(".parquet"): storage.read_tables([url], columns) for url in urls}
    rows = sorted(
        (name, psnr, unit)
        for unit, table in units.items()
        for name, psnr in zip(table["id"].to_pylist(), table["psnr_purified"].to_pylist(), strict=True)
    )
    worst = sorted(rows, key=lambda row: row[1])[:SAMPLES_WORST]
    picked = [rows[index] for index in np.random.default_rng(seed).permutation(len(rows))[:SAMPLES_AT_RANDOM]]
    kinds = {**dict.fromkeys(worst, "worst"), **dict.fromkeys(picked, "random")}
    return [Sample(id=name, unit=unit, kind=kind) for (name, _, unit), kind in kinds.items()]
