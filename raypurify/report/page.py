"""Tables in, one self-contained HTML page out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raypurify import storage
from raypurify.evaluation.masking import DIFFERENCE, ZERO, weaknesses
from raypurify.report import attempts, figures, formats, templates
from raypurify.report.budgets import budgets
from raypurify.report.cells import Row, featured
from raypurify.report.headlines import headlines
from raypurify.report.images import galleries
from raypurify.report.masking import FIGURES, read_masking
from raypurify.report.security import security_curves
from raypurify.report.tables import Group, Table, read_tables
from raypurify.runs import schema
from raypurify.storage.published import redacted

REJECTS_SHOWN = 10
COUNTED = {"in": "Images in", "out": "Out", "rejected": "Rejected", "retried": "Retried"}


def write_report(output: str, *, curves: Mapping[str, pa.Table] | None = None) -> str:
    """Write ``report.html`` into a run's output folder, from what the run wrote there.

    Args:
        output: any fsspec URL of a folder with ``summary.parquet`` (an evaluation) or ``metrics.parquet`` (a training),
            and, where they are, ``samples/``, ``rejects/`` and ``run.json``.
        curves: tables of the schema ``METRICS`` by name: the trainings that made the purifiers.

    Returns:
        The page's URL.

    Raises:
        FileNotFoundError: the folder holds neither table.
        ValueError: a table without the columns that its schema names.
    """
    summary_url, metrics_url, run_url = (
        storage.join(output, name) for name in ("summary.parquet", "metrics.parquet", "run.json")
    )
    trainings = dict(curves or {})
    if storage.exists(metrics_url):
        trainings = {"This training": storage.read_table(metrics_url), **trainings}
    elif not storage.exists(summary_url):
        raise FileNotFoundError(
            f"nothing to report in {output}: expected summary.parquet (an evaluation) or metrics.parquet (a training)"
        )
    summary = storage.read_table(summary_url) if storage.exists(summary_url) else schema.SUMMARY.empty_table()
    page = render(
        summary,
        storage.read_tables(storage.list_files(storage.join(output, "samples"), ".parquet"), schema.SAMPLES),
        storage.read_json(run_url) if storage.exists(run_url) else {},
        trainings,
        rejects=storage.read_tables(storage.list_files(storage.join(output, "rejects"), ".parquet"), schema.REJECTS),
    )
    url = storage.join(output, "report.html")
    storage.write_bytes(url, page.encode())
    return url


def render(
    summary: pa.Table,
    samples: pa.Table | None,
    run: Mapping[str, Any],
    curves: Mapping[str, pa.Table],
    *,
    rejects: pa.Table | None = None,
) -> str:
    """The page as HTML: it asks nothing of the network, and runs no script.

    Args:
        summary: of the schema ``SUMMARY``.
        samples: of the schema ``SAMPLES``, or None.
        run: ``run.json``; whatever it lacks is left out.
        curves: tables of the schema ``METRICS`` by name.
        rejects: of the schema ``REJECTS``, or None.

    Raises:
        ValueError: a table without the columns that its schema names.
    """
    summary = _checked(summary, schema.SUMMARY, "summary")
    rows: list[Row] = redacted(summary.to_pylist())
    tables = read_tables(rows)
    samples = schema.SAMPLES.empty_table() if samples is None else _checked(samples, schema.SAMPLES, "samples")
    rejects = schema.REJECTS.empty_table() if rejects is None else _checked(rejects, schema.REJECTS, "rejects")
    return templates.render(
        "page.html.j2",
        title=_title(rows),
        rows=rows,
        overview=_overview(rows),
        headlines=headlines(rows),
        tables=tables,
        masking=read_masking(rows),
        weaknesses=weaknesses(rows),
        budgets=budgets(rows),
        security=_security(tables),
        charts=_charts(tables),
        galleries=galleries(rows, samples),
        curves=_curves(curves),
        run=attempts.shown(run, COUNTED),
        warnings=attempts.warnings(run),
        rejected=rejects.num_rows,
        rejects=redacted(rejects.slice(0, REJECTS_SHOWN).to_pylist()),
        ball=formats.ball,
        columns=summary.column_names,
        metrics=_metrics(summary.schema),
        detects=any(row["detection_rate"] is not None for row in rows),
        masking_figures=FIGURES,
        masking_zero=ZERO,
        masking_difference=DIFFERENCE,
    )


def _checked(table: pa.Table, expected: pa.Schema, name: str) -> pa.Table:
    """``table`` with the columns that its schema names first; those of a user's metrics stay, behind them."""
    missing = [field for field in expected if field.name not in table.column_names]
    if not all(field.nullable for field in missing):
        names = ", ".join(field.name for field in missing)
        raise ValueError(f"the {name} table lacks the columns {names}; was it written by another version of raypurify?")
    own = [field for field in table.schema if field.name not in expected.names]
    return storage.with_columns(table, pa.schema([*expected, *own]))


def _metrics(summary: pa.Schema) -> dict[str, dict[str, schema.Shown]]:
    """The metrics' columns and how they are shown, by the heading that they stand under."""
    shown = schema.shown(summary)
    groups = {"Similarity of purified to clean": "similarity", "Perturbation": "perturbation"}
    return {title: {name: how for name, how in shown.items() if how.group == group} for title, group in groups.items()}


def _title(rows: Sequence[Row]) -> str:
    datasets = ", ".join(dict.fromkeys(row["dataset"] for row in rows))
    return f"Purifiers on {datasets}" if datasets else "Training"


def _overview(rows: Sequence[Row]) -> dict[str, Any]:
    """What the first sentence says."""
    return {
        "datasets": list(dict.fromkeys(row["dataset"] for row in rows)),
        "classifiers": list(dict.fromkeys(row["classifier"] for row in rows)),
        "attacks": list(dict.fromkeys(row["attack"] for row in rows if row["attack"] != schema.NO_ATTACK)),
        "learned": list(dict.fromkeys(row["purifier"].partition(",")[0] for row in rows if not row["trivial"])),
        "trivial": list(dict.fromkeys(row["purifier"] for row in rows if row["trivial"])),
        "n": max((row["n"] for row in rows), default=0),
    }


def _security(tables: Sequence[Table]) -> list[dict[str, Any]]:
    return [
        {"curve": curve, "svg": figures.security_curve(curve.points, norm=curve.norm, name=f"security{number}")}
        for number, curve in enumerate(security_curves(tables))
    ]


def _charts(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """One chart for each setting, classifier, surrogate and featured purifier; each attack at one radius."""
    charts: list[dict[str, Any]] = []
    for table in tables:
        targets: dict[tuple[Any, ...], list[Group]] = {}
        for group in table.shown:
            targets.setdefault((group.dataset, group.classifier, group.surrogate), []).append(group)
        for (dataset, classifier, surrogate), groups in targets.items():
            for purifier in featured(line.any for group in groups for line in group.lines):
                lines = [(group, line) for group in groups for line in group.lines if line.purifier == purifier]
                bars = [
                    _bar(group.attack, _detail(group.attack, group.ball), line.static, line.adaptive)
                    for group, line in lines
                ]
                name = f"bars{len(charts)}"
                charts.append(
                    {
                        "setting": table.setting,
                        "dataset": dataset,
                        "classifier": classifier,
                        "surrogate": surrogate,
                        "purifier": purifier,
                        "suspicious": any(line.suspicious for _, line in lines),
                        "bars": bars,
                        "clean": bars[0].clean,
                        "svg": figures.accuracy_bars(bars, name=name),
                    }
                )
    return charts


def _detail(attack: str, ball: str) -> str:
    return "" if attack == schema.NO_ATTACK else ball


def _bar(attack: str, detail: str, static: Row | None, adaptive: Row | None) -> figures.Bar:
    row = static or adaptive
    assert row is not None
    return figures.Bar(
        attack="no attack" if attack == schema.NO_ATTACK else attack,
        detail=detail,
        clean=row["accuracy_clean"],
        adversarial=static["accuracy_adversarial"] if static else None,
        purified=static["accuracy_purified"] if static else None,
        adaptive=adaptive["accuracy_purified"] if adaptive else None,
    )


def _curves(curves: Mapping[str, pa.Table]) -> list[dict[str, Any]]:
    shown = []
    for number, (name, table) in enumerate(curves.items()):
        table = _checked(table, schema.METRICS, f"metrics of {name}").sort_by("step")
        loss = table["loss"].to_numpy()
        finite = loss[np.isfinite(loss)]
        if not len(finite):
            continue
        smoothed = figures.smooth(finite)
        tail = max(1, len(finite) // 20)
        shown.append(
            {
                "name": redacted(name),
                "steps": len(loss),
                "epochs": len(table["epoch"].unique()),
                "broken": len(loss) - len(finite),
                "first": float(smoothed[0]),
                "last": float(finite[-tail:].mean()),
                "rate": float(np.median(table["images_per_second"].to_numpy())),
                "svg": figures.loss_curve(table["step"].to_numpy(), loss, name=f"loss{number}"),
            }
        )
    return shown
