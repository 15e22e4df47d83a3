"""Defenses on one bench: what each keeps of a classifier's accuracy under each attack, and what it costs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from raypurify.report import figures, templates
from raypurify.report.cells import grouped

DEFENSES = pa.schema(
    [
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("classifier", pa.string(), nullable=False),
        pa.field("defense", pa.string(), nullable=False),
        pa.field("setting", pa.string(), nullable=False),  # "white-box", "transfer" or "adaptive"
        pa.field("attack", pa.string(), nullable=False),
        pa.field("eps", pa.float64()),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("accuracy_clean", pa.float64(), nullable=False),  # of the classifier alone
        pa.field("accuracy_clean_defended", pa.float64(), nullable=False),  # behind the defense, without an attack
        pa.field("accuracy_undefended", pa.float64(), nullable=False),  # under the attack
        pa.field("accuracy", pa.float64(), nullable=False),  # under the attack, behind the defense
        pa.field("accuracy_low", pa.float64(), nullable=False),  # 95% Wilson bounds
        pa.field("accuracy_high", pa.float64(), nullable=False),
        pa.field("success_rate_eq14", pa.float64()),  # accuracy / accuracy_clean
        pa.field("accuracy_with_detection", pa.float64()),  # right or detected; null without a detector
        pa.field("false_alarm_rate", pa.float64()),
        pa.field("ssim", pa.float64()),
        pa.field("psnr", pa.float64()),
        pa.field("masking", pa.list_(pa.string())),  # signs that the figure flatters the defense; null: not checked
        pa.field("images_per_second", pa.float64()),  # of the purifier; null without one
        pa.field("parameters", pa.int64()),  # of the purifier
        pa.field("training_seconds", pa.float64(), nullable=False),
    ]
)
SETTINGS = ("white-box", "transfer", "adaptive")


def table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The rows as :data:`DEFENSES` has them."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=DEFENSES)


def charts(found: pa.Table) -> dict[str, str]:
    """For each dataset and classifier, robustness against cost, as SVG by a file's name."""
    drawn = {}
    groups = grouped(found.to_pylist(), lambda row: (row["dataset"], row["classifier"]))
    for number, ((dataset, classifier), rows) in enumerate(groups.items()):
        # Images a second, None of a defense that has no purifier, and the lowest accuracy. An attack without a ball
        # goes as far as it must, and leaves nothing right.
        found_by = {
            defense: (members[0]["images_per_second"], min(row["accuracy"] for row in members))
            for (defense,), members in grouped(
                (row for row in rows if row["setting"] == "adaptive" and row["eps"] is not None),
                lambda row: (row["defense"],),
            ).items()
        }
        points = {defense: one for defense, one in found_by.items() if one[0] is not None}
        if points:
            name = re.sub(r"[^\w.]+", "-", f"cost-{dataset}-{classifier}")
            lines = {f"{defense}, without a purifier": one[1] for defense, one in found_by.items() if one[0] is None}
            drawn[name] = figures.costs(points, lines, name=f"costs{number}")
    return drawn


def render(found: pa.Table, *, charts: Mapping[str, str], runs: Mapping[str, str], facts: Mapping[str, str]) -> str:
    """The page as HTML: it asks nothing of the network. Its one script sorts tables.

    Args:
        found: of the schema :data:`DEFENSES`.
        charts: see :func:`charts`.
        runs: links to the pages of the runs, by what they are called.
        facts: what the figures follow from, by name.
    """
    rows = found.to_pylist()
    classifiers = list(dict.fromkeys((row["dataset"], row["classifier"]) for row in rows))
    rows.sort(key=lambda row: (classifiers.index((row["dataset"], row["classifier"])), SETTINGS.index(row["setting"])))
    return templates.render(
        "defenses.html.j2",
        "paper.css",
        script="sort.js",
        title="Defenses on one bench",
        tables=grouped(rows, lambda row: (row["dataset"], row["classifier"], row["setting"])),
        costs=_costs(rows),
        detects=any(row["accuracy_with_detection"] is not None for row in rows),
        charts=charts,
        runs=runs,
        facts=facts,
    )


def _costs(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row of each defense of each classifier, for what is the same under all attacks."""
    own = grouped(rows, lambda row: (row["dataset"], row["classifier"], row["defense"]))
    return [members[0] for members in own.values()]
