"""Tables in, one self-contained HTML page out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from raypurify import plugins, storage
from raypurify.report import (
    bars,
    confusion,
    epochs,
    headlines,
    images,
    masking,
    notes,
    run,
    security,
    settings,
    tables,
    templates,
    training,
)
from raypurify.report.sections import Page, Section, Trained
from raypurify.runs import schema
from raypurify.storage.published import redacted

SECTIONS: tuple[Callable[[Page], Section | None], ...] = (
    headlines.section,
    security.section,
    tables.section,
    masking.section,
    bars.section,
    confusion.section,
    images.section,
    training.section,
    epochs.section,
    settings.section,
    notes.section,
    run.section,
)
"""The page, in its order. A section that has nothing to show returns None. The user's stand before the notes."""


def write_report(output: str, *, curves: Mapping[str, pa.Table] | None = None, sections: Sequence[str] = ()) -> str:
    """Write ``report.html`` into a run's output folder, from what the run wrote there.

    Args:
        output: the folder, as :func:`read_page` takes it.
        curves: tables of the schema ``STEPS`` by name: the trainings that made the purifiers.
        sections: my_package.module:callable each, called as those in :data:`SECTIONS` are.

    Returns:
        The page's URL.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_page`; or an unknown section.
    """
    url = storage.join(output, "report.html")
    storage.write_bytes(url, filled(read_page(output, curves=curves), sections).encode())
    return url


def read_page(output: str, *, curves: Mapping[str, pa.Table] | None = None) -> Page:
    """What a run wrote into its output folder.

    Args:
        output: any fsspec URL of a folder with ``summary.parquet`` (an evaluation) or ``metrics.parquet`` (a training),
            and, where they are, ``samples/``, ``rejects/`` and ``run.json``.
        curves: tables of the schema ``STEPS`` by name: the trainings that made the purifiers.

    Raises:
        FileNotFoundError: the folder holds neither table.
        ValueError: a table without the columns that its schema names.
    """
    summary_url, metrics_url, run_url, confused = (
        storage.join(output, name) for name in ("summary.parquet", "metrics.parquet", "run.json", "confusion.parquet")
    )
    trainings, trained = dict(curves or {}), None
    if storage.exists(metrics_url):
        trained = _trained(output, storage.read_table(metrics_url))
        trainings = {"This training": trained.curve, **trainings}
    elif not storage.exists(summary_url):
        raise FileNotFoundError(
            f"nothing to report in {output}: expected summary.parquet (an evaluation) or metrics.parquet (a training)"
        )
    return page_of(
        storage.read_table(summary_url) if storage.exists(summary_url) else schema.SUMMARY.empty_table(),
        storage.read_tables(storage.list_files(storage.join(output, "samples"), ".parquet"), schema.SAMPLES),
        storage.read_json(run_url) if storage.exists(run_url) else {},
        trainings,
        storage.read_tables(storage.list_files(storage.join(output, "rejects"), ".parquet"), schema.REJECTS),
        storage.read_table(confused) if storage.exists(confused) else schema.CONFUSION.empty_table(),
        trained,
    )


def _trained(output: str, curve: pa.Table) -> Trained:
    metrics, classes = (storage.join(output, name) for name in ("model/metrics.json", "classes.parquet"))
    return Trained(
        curve=curve,
        metrics=storage.read_json(metrics) if storage.exists(metrics) else {},
        classes=storage.read_table(classes) if storage.exists(classes) else schema.CLASSES.empty_table(),
    )


def page_of(
    summary: pa.Table,
    samples: pa.Table,
    run: Mapping[str, Any],
    curves: Mapping[str, pa.Table],
    rejects: pa.Table,
    confusion: pa.Table,
    trained: Trained | None = None,
) -> Page:
    """What a run wrote, its tables held against their schemas.

    Raises:
        ValueError: a table without the columns that its schema names.
    """
    summary = _checked(summary, schema.SUMMARY, "summary")
    names = "victim", "classifier", "purifier"
    return Page(
        rows=[row | {name: plugins.readable(row[name]) for name in names} for row in redacted(summary.to_pylist())],
        schema=summary.schema,
        samples=_checked(samples, schema.SAMPLES, "samples"),
        rejects=_checked(rejects, schema.REJECTS, "rejects"),
        run=run,
        confusion=_checked(confusion, schema.CONFUSION, "confusion"),
        curves={name: _checked(table, schema.STEPS, f"metrics of {name}") for name, table in curves.items()},
        trained=trained,
    )


def filled(page: Page, sections: Sequence[str] = ()) -> str:
    """The page as HTML, with the user's sections: it asks nothing of the network, and runs no script."""
    shown = [section for make in (*SECTIONS[:-2], *users_sections(sections), *SECTIONS[-2:]) if (section := make(page))]
    return templates.render(
        "page.html.j2", title=_title(page), page=page, overview=_overview(page.rows), sections=shown
    )


def users_sections(names: Sequence[str]) -> list[Callable[[Page], Section | None]]:
    """The user's sections.

    Raises:
        ValueError: a name that is no dotted path to a callable.
    """
    for name in names:
        if ":" not in name:
            raise ValueError(f"sections: expected my_package.module:callable, got {name!r}")
    return [plugins.find("raypurify.report", name) for name in names]


def _checked(table: pa.Table, expected: pa.Schema, name: str) -> pa.Table:
    """``table`` with the columns that its schema names first; those of a user's metrics stay, behind them."""
    missing = [field for field in expected if field.name not in table.column_names]
    if not all(field.nullable for field in missing):
        names = ", ".join(field.name for field in missing)
        raise ValueError(f"the {name} table lacks the columns {names}; was it written by another version of raypurify?")
    own = [field for field in table.schema if field.name not in expected.names]
    return storage.with_columns(table, pa.schema([*expected, *own]))


def _title(page: Page) -> str:
    if page.rows:
        return f"Purifiers on {', '.join(page.datasets)}"
    identity = redacted(page.run.get("identity") or {})
    named = "model" in identity and "data" in identity
    return f"{plugins.readable(identity['model'])} trained on {identity['data']}" if named else "Training"


def _overview(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the first sentence says."""
    return {
        "classifiers": list(dict.fromkeys(row["classifier"] for row in rows)),
        "attacks": list(dict.fromkeys(row["attack"] for row in rows if row["attack"] != schema.NO_ATTACK)),
        "learned": list(dict.fromkeys(row["purifier"].partition(",")[0] for row in rows if not row["trivial"])),
        "trivial": list(dict.fromkeys(row["purifier"] for row in rows if row["trivial"])),
        "n": max((row["n"] for row in rows), default=0),
    }
