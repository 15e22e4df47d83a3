"""The page of certificates: accuracy that holds within a radius, whatever the attacker does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypurify import storage
from raypurify.report import attempts, figures, formats, images, templates
from raypurify.report.cells import Row, grouped
from raypurify.runs import schema
from raypurify.storage.published import redacted

COUNTED = {"in": "Images in", "out": "Out", "rejected": "Rejected"}
Curves = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Of each cell, by its hash: radii (M,), ascending from 0, and the shares in [0, 1] that hold from each to the next."""
COMMON = ("classifier", "purifier", "sigma")


def by_radius(summary: pa.Table) -> pa.Table:
    """A summary (``schema.CERTIFIED``) as it is printed: a row for each cell, a column for each radius."""
    found = []
    for members in grouped(summary.to_pylist(), lambda row: (row["cell"],)).values():
        one = members[0]
        shares = {f"r = {row['radius']:g}": row["certified"] for row in members}
        found.append({**{name: one[name] for name in (*COMMON, "n", "abstained", "draws_mean")}, **shares})
    columns = list(dict.fromkeys(name for row in found for name in row))
    return pa.table({name: [row.get(name) for row in found] for name in columns})


def read(output: str) -> tuple[list[Row], Curves]:
    """The summary of the certificates of an output, and the curve of each cell."""
    rows = storage.read_tables([storage.join(output, "summary.parquet")], schema.CERTIFIED).to_pylist()
    return rows, {cell: _curve(output, cell) for cell in dict.fromkeys(row["cell"] for row in rows)}


def overview(output: str) -> tuple[dict[str, Any], Iterator[tuple[str, str]]]:
    """Certified accuracies of the first cell by their radii, and charts with their captions: what a notebook shows."""
    rows, curves = read(output)
    cells = [*grouped(rows, lambda row: (row["cell"],)).values()]
    figures = {f"certified at r = {row['radius']:g}": row["certified"] for row in cells[0]}
    return figures, ((f"{one['row']['purifier']}: certified accuracy", one["svg"]) for one in _charts(cells, curves))


def write_report(output: str) -> None:
    """Write ``report.html`` into the output folder of certificates, from what the run wrote there."""
    rows, curves = read(output)
    samples = {cell: _samples(output, cell) for cell in curves}
    page = certificates_page(storage.read_json(storage.join(output, "run.json")), rows, curves, samples)
    storage.write_bytes(storage.join(output, "report.html"), page.encode())


def _curve(output: str, cell: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Radii at which certified accuracy falls, from 0, and to what: both (M,)."""
    urls = storage.list_files(storage.join(output, "certificates", f"cell={cell}"), ".parquet")
    table = storage.read_tables(urls, pa.schema([schema.CERTIFICATES.field(name) for name in ("radius", "right")]))
    radii = np.sort(table["radius"].to_numpy()[table["right"].to_numpy()])
    falls, first = np.unique(radii, return_index=True)
    left = (len(radii) - first) / max(len(table), 1)
    # A radius that is certified counts itself: the share falls behind it.
    return np.concatenate([[0.0], falls]), np.append(left, 0.0)


def _samples(output: str, cell: str) -> list[images.Sample]:
    """A few images of a cell with their pixels; none where the run kept none of it."""
    url = storage.join(output, "samples", f"{cell}.parquet")
    if not storage.exists(url):
        return []
    return images.read_samples(storage.read_table(url), ("clean", "noisy", "purified"))


def certificates_page(
    run: Mapping[str, Any], rows: Sequence[Row], curves: Curves, samples: Mapping[str, Sequence[images.Sample]]
) -> str:
    """The page as HTML: it asks nothing of the network, and runs no script.

    Args:
        run: ``run.json``; whatever it lacks is left out.
        rows: of the schema ``CERTIFIED``.
        curves: of each cell, by its hash: radii (M,), and shares in [0, 1] that hold from each to the next.
        samples: of each cell, by its hash: rows of the schema ``NOISY_SAMPLES``.
    """
    run = formats.visible(run)
    rows = formats.visible(redacted([*rows]))
    cells = [*grouped(map(dict, rows), lambda row: (row["cell"],)).values()]
    identity = run.get("identity") or {}
    radii = sorted({row["radius"] for row in rows})
    return templates.render(
        "certificates.html.j2",
        title="Certified accuracy",
        cells=[{"row": members[0], "at": {row["radius"]: row for row in members}} for members in cells],
        radii=radii,
        charts=list(_charts(cells, curves)),
        galleries=[_gallery(members[0], samples.get(members[0]["cell"], ())) for members in cells],
        identity=identity,
        values=_values(run),
        warnings=attempts.warnings(run),
        run=attempts.shown(run, COUNTED),
    )


def _values(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """How many values an image has, and its shape; None where no attempt tells."""
    shapes = [shape for attempt in run["attempts"] if (shape := attempt["counts"].get("shape"))]
    return {"shape": "×".join(map(str, shapes[-1])), "root": math.sqrt(math.prod(shapes[-1]))} if shapes else None


def _charts(
    cells: Sequence[Sequence[Row]],
    curves: Curves,
) -> Iterator[dict[str, Any]]:
    """A chart for each classifier and purifier, with a line for each size of the noise."""
    together = grouped([dict(members[0]) for members in cells], lambda row: (row["classifier"], row["purifier"]))
    attacked = {members[0]["cell"]: members for members in cells if members[0]["empirical"] is not None}
    for number, members in enumerate(together.values()):
        lines = {f"σ = {row['sigma']:g}": curves[row["cell"]] for row in members if row["cell"] in curves}
        marks = {
            f"σ = {row['sigma']:g}": sorted((one["radius"], one["empirical"]) for one in attacked[row["cell"]])
            for row in members
            if row["cell"] in attacked
        }
        yield {
            "row": members[0],
            "svg": figures.certified_curves(lines, marks, name=f"certified{number}"),
            "drawn": any(row["drawn"] for row in members),
        }


def _gallery(row: Row, samples: Sequence[images.Sample]) -> dict[str, Any]:
    """A few images of a cell: clean, noisy and purified, each with what the classifier takes it for."""
    kinds = {"clean": "Clean", "noisy": "Noisy", "purified": "Purified"}
    pictures = {
        name: [images.classified(sample, kind, name, str) for sample in samples] for kind, name in kinds.items()
    }
    return {"row": row, "samples": samples, "pictures": pictures if samples else {}}
