"""The paper's Tables 2-7 beside what was measured: tables, and the page that shows them.

The paper is Ali et al., "Defending Adversarial Examples by a Clipped Residual U-Net Model"; its figures are in
``paper.json``.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import pyarrow as pa

from raypurify.report import figures, templates, training
from raypurify.report.cells import grouped

EQ16_OFFSET = 20 * math.log10(255)
"""How far, in dB, the PSNR of the paper's Eq. 16 is above the usual one."""
Parameters = Literal["calibrated", "fixed"]
PARAMETERS: tuple[Parameters, ...] = ("calibrated", "fixed")
ATTACKS: Mapping[str, Mapping[str, str]] = {
    "FGSM": {"fgsm": ""},
    "R-FGSM": {"r_fgsm": ""},
    "PGD": {"pgd": ""},
    "DFA": {"deepfool": ""},
    "CWA": {"carlini_wagner": ""},
    "SPA": {"stadv": "flow", "rotation_translation": "rotation"},
}
"""This project's attacks, by the paper's names, and which reading of the name each is."""

ACCURACY = pa.schema(
    [
        pa.field("table", pa.int64(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("setting", pa.string(), nullable=False),
        pa.field("attack", pa.string(), nullable=False),  # the paper's name
        pa.field("reading", pa.string(), nullable=False),  # of the paper's name; empty where it has one
        pa.field("target", pa.string(), nullable=False),  # the paper's X, or X/Y: made on X, restored by Y's CRU-Net
        pa.field("parameters", pa.string(), nullable=False),  # "calibrated" or "fixed"
        pa.field("attacked_by", pa.string(), nullable=False),  # this project's attack
        pa.field("n", pa.int64(), nullable=False),
        pa.field("paper_clean", pa.float64(), nullable=False),
        pa.field("paper_no_defense", pa.float64(), nullable=False),
        pa.field("paper_cru_net", pa.float64(), nullable=False),
        pa.field("clean", pa.float64(), nullable=False),
        pa.field("no_defense", pa.float64(), nullable=False),
        pa.field("cru_net", pa.float64(), nullable=False),  # the mean over seeds
        pa.field("seeds", pa.int64(), nullable=False),
        pa.field("lowest", pa.float64(), nullable=False),  # of the seeds
        pa.field("highest", pa.float64(), nullable=False),
        pa.field("difference", pa.float64(), nullable=False),  # cru_net - paper_cru_net
        pa.field("paper_ratio", pa.float64(), nullable=False),  # Eq. 14: restored / clean
        pa.field("ratio", pa.float64(), nullable=False),
        pa.field("clean_restored", pa.float64(), nullable=False),  # clean images through CRU-Net
        pa.field("best_trivial", pa.string()),  # the best purifier that learned nothing
        pa.field("best_trivial_restored", pa.float64()),
        pa.field("margin", pa.float64()),  # cru_net - best_trivial_restored
        pa.field("adaptive", pa.float64()),  # under PGD through CRU-Net
        pa.field("adaptive_eps", pa.float64()),
        pa.field("adaptive_n", pa.int64()),
        pa.field("impossible", pa.bool_(), nullable=False),  # the paper restores more than it has right unattacked
    ]
)
SIMILARITY = pa.schema(
    [
        pa.field("table", pa.int64(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("attack", pa.string(), nullable=False),
        pa.field("reading", pa.string(), nullable=False),
        pa.field("target", pa.string(), nullable=False),
        pa.field("parameters", pa.string(), nullable=False),
        pa.field("attacked_by", pa.string(), nullable=False),
        pa.field("paper_ssim", pa.float64(), nullable=False),
        pa.field("ssim", pa.float64()),
        pa.field("best_trivial_ssim", pa.float64()),
        pa.field("paper_psnr_eq16", pa.float64(), nullable=False),
        pa.field("psnr_eq16", pa.float64()),
        pa.field("psnr", pa.float64()),  # as usual: 48.13 dB less
    ]
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one attack on one classifier came to behind one purifier."""

    dataset: str
    classifier: str
    attack: str
    """The attack's name in this project."""
    attacked_by: str
    """The attack and its parameters, as they are shown."""
    parameters: Parameters
    eps: float | None
    """Radius of the attack's ball; None without one."""
    purifier: str
    trained_for: str | None
    """The classifier that a learned purifier was trained for."""
    trivial: bool
    """Whether the purifier learned nothing."""
    figures: Mapping[str, Any]
    """By the names of ``schema.SUMMARY``."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveAccuracy:
    """Accuracy under an attacker who knows the purifier."""

    dataset: str
    classifier: str
    trained_for: str
    eps: float
    accuracy: float
    n: int


@functools.cache
def published() -> dict[str, list[dict[str, Any]]]:
    """The paper's figures: the rows of its tables of accuracy (2-5) and of similarity (6-7)."""
    found: dict[str, Any] = json.loads(resources.files("raypurify.report").joinpath("paper.json").read_text())
    return found


def target(text: str) -> tuple[str, str]:
    """The classifier that images of a row of the paper are made on, and the one whose CRU-Net restores them."""
    made_on, _, restored_for = text.lower().replace("-", "_").partition("/")
    return made_on, restored_for or made_on


def no_defense(dataset: str, attack: str, classifier: str) -> float:
    """The paper's accuracy under an attack, by this project's names, without a defense."""
    (row,) = (
        row
        for row in published()["accuracy"]
        if row["dataset"] == dataset
        and row["setting"] == "white-box"
        and attack in ATTACKS[row["attack"]]
        and target(row["target"])[0] == classifier
    )
    return float(row["no_defense"])


def accuracy_table(measured: Sequence[Measured], adaptive: Sequence[AdaptiveAccuracy]) -> pa.Table:
    """Tables 2-5: a row for each of the paper's, each reading of its attack and each choice of parameters."""
    return pa.Table.from_pylist(
        [
            {**_common(row, reading, cells), **_accuracies(row, cells, own, adaptive)}
            for row in published()["accuracy"]
            for reading, cells, own in _cells_of(row, measured)
        ],
        schema=ACCURACY,
    )


def similarity_table(measured: Sequence[Measured]) -> pa.Table:
    """Tables 6 and 7, as :func:`accuracy_table`."""
    ssims = [row for row in published()["similarity"] if row["metric"] == "ssim"]
    psnrs = {(row["target"], row["attack"]): row["value"] for row in published()["similarity"] if row not in ssims}
    return pa.Table.from_pylist(
        [
            {
                **_common(row, reading, cells),
                "paper_ssim": row["value"],
                "paper_psnr_eq16": psnrs[row["target"], row["attack"]],
                "ssim": own[0].figures["ssim_purified"],
                "psnr": (psnr := own[0].figures["psnr_purified"]),
                "psnr_eq16": None if psnr is None else psnr + EQ16_OFFSET,
                "best_trivial_ssim": max(
                    (
                        ssim
                        for cell in cells
                        if _is_trivial(cell) and (ssim := cell.figures["ssim_purified"]) is not None
                    ),
                    default=None,
                ),
            }
            for row in ssims
            for reading, cells, own in _cells_of(row, measured)
        ],
        schema=SIMILARITY,
    )


def cases(table: pa.Table) -> list[tuple[str, str]]:
    """Datasets and classifiers that a table has rows of."""
    return list(dict.fromkeys((row["dataset"], target(row["target"])[0]) for row in table.to_pylist()))


def merged(table: pa.Table, earlier: pa.Table) -> pa.Table:
    """A table, with an earlier one's rows of what it has none of, in the order of the paper's tables."""
    own = set(cases(table))
    kept = [row for row in earlier.to_pylist() if (row["dataset"], target(row["target"])[0]) not in own]
    rows = sorted([*table.to_pylist(), *kept], key=lambda row: row["table"])
    return pa.Table.from_pylist(rows, schema=table.schema)


def _cells_of(
    row: Mapping[str, Any], measured: Iterable[Measured]
) -> Iterable[tuple[str, list[Measured], list[Measured]]]:
    """What was measured for a row of the paper: the reading of its attack, all its cells, and those of its CRU-Nets."""
    made_on, restored_for = target(row["target"])
    here = [cell for cell in measured if (cell.dataset, cell.classifier) == (row["dataset"], made_on)]
    for attack, reading in ATTACKS[row["attack"]].items():
        for parameters in PARAMETERS:
            cells = [cell for cell in here if (cell.attack, cell.parameters) == (attack, parameters)]
            own = [cell for cell in cells if cell.trained_for == restored_for]
            if own:
                yield reading, cells, own


def _common(row: Mapping[str, Any], reading: str, cells: Sequence[Measured]) -> dict[str, Any]:
    names = ("table", "dataset", "setting", "attack", "target")
    one = cells[0]
    return {
        **{name: row[name] for name in names if name in row},
        "reading": reading,
        "parameters": one.parameters,
        "attacked_by": one.attacked_by,
    }


def _accuracies(
    row: Mapping[str, Any], cells: Sequence[Measured], own: Sequence[Measured], adaptive: Sequence[AdaptiveAccuracy]
) -> dict[str, Any]:
    """The figures of a row: the paper's, and the mean over this row's CRU-Nets."""
    first = own[0].figures
    restored = [cell.figures["accuracy_purified"] for cell in own]
    mean = sum(restored) / len(restored)
    best = max((c for c in cells if _is_trivial(c)), key=lambda c: c.figures["accuracy_purified"], default=None)
    through = _adaptive_of(own[0], adaptive)
    return {
        "n": first["n"],
        "paper_clean": row["no_attack"],
        "paper_no_defense": row["no_defense"],
        "paper_cru_net": row["cru_net"],
        "clean": first["accuracy_clean"],
        "no_defense": first["accuracy_adversarial"],
        "cru_net": mean,
        "seeds": len(own),
        "lowest": min(restored),
        "highest": max(restored),
        "difference": mean - row["cru_net"],
        "paper_ratio": row["cru_net"] / row["no_attack"],
        "ratio": mean / first["accuracy_clean"],
        "clean_restored": first["accuracy_clean_purified"],
        "best_trivial": best and best.purifier,
        "best_trivial_restored": best and best.figures["accuracy_purified"],
        "margin": best and mean - best.figures["accuracy_purified"],
        "adaptive": through and through.accuracy,
        "adaptive_eps": through and through.eps,
        "adaptive_n": through and through.n,
        "impossible": row["cru_net"] > row["no_attack"],
    }


def _is_trivial(cell: Measured) -> bool:
    return cell.trivial and cell.purifier != "identity"


def _adaptive_of(cell: Measured, adaptive: Sequence[AdaptiveAccuracy]) -> AdaptiveAccuracy | None:
    """The adaptive figure beside a cell: at its own radius, or at the largest where its attack has no ball."""
    same = [
        one
        for one in adaptive
        if (one.dataset, one.classifier, one.trained_for) == (cell.dataset, cell.classifier, cell.trained_for)
    ]
    if cell.eps is None:
        return max(same, key=lambda one: one.eps, default=None)
    return next((one for one in same if one.eps == cell.eps), None)


@dataclass(frozen=True, kw_only=True)
class PaperLine:
    """A line of a table of the page: one row of the paper, and one reading of its attack."""

    calibrated: Mapping[str, Any] | None
    fixed: Mapping[str, Any] | None

    @property
    def any(self) -> Mapping[str, Any]:
        one = self.calibrated or self.fixed
        assert one is not None
        return one


@dataclass(frozen=True, kw_only=True)
class Charts:
    """What is drawn of the tables and the trainings."""

    bars: list[dict[str, Any]]
    """One for each target, at the calibrated parameters (the paper's Figs. 8-11)."""
    curves: list[dict[str, Any]]
    """The loss of each training (the paper's Figs. 3-5)."""

    @property
    def files(self) -> dict[str, str]:
        """Each chart as an SVG file, by its name."""
        drawn = {f"accuracy-{bar['dataset']}-{bar['setting']}-{bar['target']}": bar["svg"] for bar in self.bars}
        drawn |= {f"loss-{curve['name']}": curve["svg"] for curve in self.curves}
        return {re.sub(r"[^\w.]+", "-", name) + ".svg": figures.alone(svg) for name, svg in drawn.items()}


def charts(accuracy: pa.Table, curves: Mapping[str, pa.Table]) -> Charts:
    """Draw them.

    Args:
        accuracy: of the schema :data:`ACCURACY`.
        curves: tables of the schema ``STEPS`` by the names of the trainings.
    """
    drawn = (training.curve(name, table, number) for number, (name, table) in enumerate(curves.items()))
    return Charts(bars=list(_bars(accuracy.to_pylist())), curves=[curve for curve in drawn if curve is not None])


def render(
    accuracy: pa.Table,
    similarity: pa.Table,
    *,
    charts: Charts,
    runs: Mapping[str, str],
    facts: Mapping[str, str],
) -> str:
    """The page as HTML: it asks nothing of the network. Its one script sorts tables.

    Args:
        accuracy: of the schema :data:`ACCURACY`.
        similarity: of the schema :data:`SIMILARITY`.
        charts: see :func:`charts`.
        runs: links to the pages of the runs, by what they are called.
        facts: what the figures follow from, by name.
    """
    rows = accuracy.to_pylist()
    return templates.render(
        "paper.html.j2",
        "paper.css",
        script="sort.js",
        title="The paper's tables, reproduced",
        source=published()["source"],
        tables=_grouped(rows),
        similarities=_grouped(similarity.to_pylist()),
        reached=_reached(rows),
        charts=charts,
        runs=runs,
        facts=facts,
    )


def _grouped(rows: Sequence[Mapping[str, Any]]) -> dict[int, list[PaperLine]]:
    """The lines of each table, by the paper's number for it."""
    found: dict[int, dict[tuple[str, ...], dict[str, Mapping[str, Any]]]] = {}
    for row in rows:
        lines = found.setdefault(row["table"], {})
        lines.setdefault((row["attack"], row["target"], row["reading"]), {})[row["parameters"]] = row
    return {
        table: [PaperLine(calibrated=line.get("calibrated"), fixed=line.get("fixed")) for line in lines.values()]
        for table, lines in found.items()
    }


def _reached(rows: Sequence[Mapping[str, Any]]) -> dict[int, tuple[int, int]]:
    """In how many of the calibrated cells of each table the restored share of what was right is the paper's or more."""
    found: dict[int, tuple[int, int]] = {}
    for row in rows:
        if row["parameters"] == "calibrated":
            better, all_cells = found.get(row["table"], (0, 0))
            found[row["table"]] = better + (row["ratio"] >= row["paper_ratio"]), all_cells + 1
    return found


def _bars(rows: Sequence[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """A chart for each target, at the calibrated parameters."""
    shown = (dict(row) for row in rows if row["parameters"] == "calibrated")
    targets = grouped(shown, lambda row: (row["dataset"], row["setting"], row["target"]))
    for number, ((dataset, setting, name), members) in enumerate(targets.items()):
        bars = [
            figures.Bar(
                attack=row["attack"],
                detail=row["reading"],
                clean=row["clean"],
                adversarial=row["no_defense"],
                purified=row["cru_net"],
                adaptive=row["adaptive"],
            )
            for row in members
        ]
        svg = figures.accuracy_bars(bars, name=f"bars{number}")
        yield {"dataset": dataset, "setting": setting, "target": name, "svg": svg}
