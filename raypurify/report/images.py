"""Samples as pictures: original, perturbation, adversarial and restored (the paper's Figs. 6 and 7)."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from raypurify.report import formats
from raypurify.report.cells import Row, at_one_radius, featured, surrogate
from raypurify.runs.schema import NO_ATTACK
from raypurify.storage.published import redacted

Pixels = NDArray[np.float32]
"""(H, W, C), C 1 or 3, nominally in [0, 1]."""

Sample = dict[str, Any]
"""One row of ``samples/``, its images as :data:`Pixels`."""

COLUMNS = 8  # of a gallery with few attacks; with many, two examples each
SHOWN_SIDE = 76  # CSS pixels
LARGEST_SIDE = 192  # pixels; larger images are shrunk, which keeps the page light


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image of the page."""

    uri: str
    alt: str
    note: str
    right: bool | None = None
    """Whether the classifier is right on it; None for a perturbation, which nobody classifies."""
    fine: bool = False
    """Whether it has more pixels than it is shown with, so that a browser had better blend them."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """The examples of one attack."""

    attack: str
    ball: str
    ids: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Examples of one kind, ``random`` or ``worst``. Each row holds one picture for each example."""

    kind: str
    columns: tuple[Column, ...]
    rows: dict[str, tuple[Picture, ...]]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Examples of one classifier and purifier in one setting."""

    dataset: str
    classifier: str
    surrogate: str | None
    purifier: str
    setting: str
    grids: tuple[Grid, ...]


def galleries(rows: Sequence[Row], samples: pa.Table) -> list[Gallery]:
    """The samples of the featured purifiers' cells: for each of them, random ones and the worst.
    An attack at several radii is shown at one.

    Args:
        rows: of the summary.
        samples: of the schema ``SAMPLES``.
    """
    rows = at_one_radius(rows)
    by_cell: dict[str, list[Sample]] = {}
    for sample in _samples(samples):
        by_cell.setdefault(sample["cell"], []).append(sample)
    shown = featured(row for row in rows if row["cell"] in by_cell)
    grouped: dict[tuple[Any, ...], list[Row]] = {}
    for setting in dict.fromkeys(["white-box", "adaptive", *(row["setting"] for row in rows)]):
        for row in rows:
            if row["setting"] == setting and row["purifier"] in shown and row["attack"] != NO_ATTACK:
                key = (setting, row["dataset"], row["classifier"], surrogate(row), row["purifier"])
                grouped.setdefault(key, []).append(row)
    made = []
    for (setting, dataset, classifier, made_on, purifier), cells in grouped.items():
        grids = [_grid(cells, by_cell, kind) for kind in ("random", "worst")]
        made.append(
            Gallery(
                dataset=dataset,
                classifier=classifier,
                surrogate=made_on,
                purifier=purifier,
                setting=setting,
                grids=tuple(grid for grid in grids if grid),
            )
        )
    return [gallery for gallery in made if gallery.grids]


def _samples(table: pa.Table) -> list[Sample]:
    images = ("clean", "adversarial", "purified")
    table = table.combine_chunks()
    samples: list[Sample] = table.drop_columns(list(images)).to_pylist()
    for position, sample in enumerate(samples):
        sample["id"] = redacted(sample["id"])
        for kind in images:
            flat = table[kind][position].values.to_numpy(zero_copy_only=False)
            sample[kind] = flat.reshape(sample["shape"])
    return samples


def _grid(cells: Sequence[Row], by_cell: dict[str, list[Sample]], kind: str) -> Grid | None:
    per_attack = max(2, COLUMNS // len(cells))
    columns, pictures = [], []
    for cell in cells:
        examples = [sample for sample in by_cell.get(cell["cell"], []) if sample["kind"] == kind][:per_attack]
        if examples:
            columns.append(
                Column(
                    attack=cell["attack"],
                    ball=formats.ball(cell["norm"], cell["eps"]),
                    ids=tuple(sample["id"] for sample in examples),
                    labels=tuple(sample["label"] for sample in examples),
                )
            )
            pictures += _pictures(examples)
    if not columns:
        return None
    names = ("Original", "Perturbation", "Adversarial", "Restored")
    return Grid(kind=kind, columns=tuple(columns), rows=dict(zip(names, zip(*pictures, strict=True), strict=True)))


def _pictures(examples: Sequence[Sample]) -> list[tuple[Picture, ...]]:
    """Four pictures for each example of one attack; their perturbations are amplified alike."""
    changes = [sample["adversarial"] - sample["clean"] for sample in examples]
    gain = amplification(max(float(np.abs(change).max()) for change in changes))
    return [
        (
            _classified(sample, "clean", "Original"),
            _perturbation(sample["id"], change, gain),
            _classified(sample, "adversarial", "Adversarial"),
            _classified(sample, "purified", "Restored"),
        )
        for sample, change in zip(examples, changes, strict=True)
    ]


def amplification(largest: float) -> float:
    """The factor, to two digits, that brings a perturbation of at most ``largest`` just inside [-0.5, 0.5]."""
    if largest == 0:
        return 1.0
    gain = 0.5 / largest
    digit = 10.0 ** (np.floor(np.log10(gain)) - 1)
    return float(np.floor(gain / digit + 1e-4) * digit)


def _classified(sample: Sample, kind: str, name: str) -> Picture:
    label, prediction = sample["label"], sample[f"pred_{kind}"]
    verdict = "right" if prediction == label else "wrong"
    return Picture(
        uri=png(sample[kind]),
        alt=f"{name} image {sample['id']}, label {label}, classified as {prediction}: {verdict}",
        note=str(prediction),
        right=prediction == label,
        fine=_is_fine(sample[kind]),
    )


def _perturbation(key: str, change: Pixels, gain: float) -> Picture:
    largest = float(np.abs(change).max())
    return Picture(
        uri=png(0.5 + gain * change),
        alt=f"Perturbation of image {key}, amplified {gain:g} times, at most {largest:.3f}",
        note=f"×{gain:g}",
        fine=_is_fine(change),
    )


def _is_fine(pixels: Pixels) -> bool:
    return bool(max(pixels.shape[:2]) > SHOWN_SIDE)


def png(pixels: Pixels) -> str:
    """A PNG in a data URI."""
    levels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)
    if max(image.size) > LARGEST_SIDE:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
