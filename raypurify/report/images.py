"""Samples as pictures: original, perturbation, adversarial and restored (the paper's Figs. 6 and 7)."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from raypurify.report import formats
from raypurify.report.cells import Row, at_one_radius, featured, grouped, surrogate
from raypurify.report.sections import Page, Section
from raypurify.runs.schema import NO_ATTACK
from raypurify.storage.published import redacted

Pixels = NDArray[np.float32]
"""(H, W, C), C 1 or 3, nominally in [0, 1]."""

Sample = dict[str, Any]
"""One row of ``samples/``, its images as :data:`Pixels`."""

Named = Callable[[int], str]
"""What a class is called, by its number."""

KINDS = {
    "random": "Chosen at random",
    "worst": "The worst: those that purification leaves wrong, least like the original first",
}
COLUMNS = 8  # of a gallery with few attacks; with many, two examples each
SHOWN_SIDE = 76  # CSS pixels
LARGEST_SIDE = 256  # pixels; larger images are shrunk, which keeps the page light
QUALITY = 90  # of WebP, which images that can be opened are shown as: as PNG a page of photographs has 20 MB


def section(page: Page) -> Section | None:
    """The samples of the featured purifiers' cells: for each of them, random ones and the worst.
    An attack at several radii is shown at one."""
    found = list(galleries(page))
    opens = any(
        picture["fine"]
        for gallery in found
        for table in gallery["tables"]
        for row in table["rows"].values()
        for picture in row
    )
    return page.section("images", "Images", galleries=found, opens=opens) if found else None


def galleries(page: Page) -> Iterator[dict[str, Any]]:
    """Examples of one classifier and purifier in one setting each, in tables by :data:`KINDS`."""
    rows = at_one_radius(page.rows)
    by_cell = grouped(
        read_samples(page.samples, ("clean", "adversarial", "purified")), lambda sample: (sample["cell"],)
    )
    shown = featured(row for row in rows if (row["cell"],) in by_cell)
    order = list(dict.fromkeys(["white-box", "adaptive", *(row["setting"] for row in rows)]))
    attacked = [row for row in rows if row["purifier"] in shown and row["attack"] != NO_ATTACK]
    attacked.sort(key=lambda row: order.index(row["setting"]))
    names = ("setting", "dataset", "classifier", "purifier")
    for cells in grouped(attacked, lambda row: (*(row[name] for name in names), surrogate(row))).values():
        of_cells = [(cell, by_cell.get((cell["cell"],), [])) for cell in cells]
        tables = [table for kind in KINDS if (table := _table(of_cells, kind, page.class_name))]
        if tables:
            yield {"row": cells[0], "surrogate": surrogate(cells[0]), "tables": tables}


def read_samples(table: pa.Table, kinds: Sequence[str]) -> list[Sample]:
    """Rows of a table of samples; the columns ``kinds`` hold their pixels, of the shapes in ``shape``."""
    table = table.combine_chunks()
    samples: list[Sample] = table.drop_columns(list(kinds)).to_pylist()
    for position, sample in enumerate(samples):
        sample["id"] = redacted(sample["id"])
        for kind in kinds:
            flat = table[kind][position].values.to_numpy(zero_copy_only=False)
            sample[kind] = flat.reshape(sample["shape"])
    return samples


def _table(cells: Sequence[tuple[Row, Sequence[Sample]]], kind: str, named: Named) -> dict[str, Any] | None:
    """Examples of one kind: attacks side by side, and a row for each sort of picture."""
    per_attack = max(2, COLUMNS // len(cells))
    attacks, pictures = [], []
    for cell, samples in cells:
        examples = [sample for sample in samples if sample["kind"] == kind][:per_attack]
        if examples:
            attacks.append((cell["attack"], formats.ball(cell["norm"], cell["eps"]), examples))
            pictures += _pictures(examples, named)
    names = ("Original", "Perturbation", "Adversarial", "Restored", "Difference")
    rows = dict(zip(names, zip(*pictures, strict=True), strict=True)) if pictures else {}
    return {"kind": kind, "title": KINDS[kind], "attacks": attacks, "rows": rows} if attacks else None


def _pictures(examples: Sequence[Sample], named: Named) -> list[tuple[dict[str, Any], ...]]:
    """Five pictures for each example of one attack; their perturbations, and what is left of them, are amplified
    alike."""
    changes = [sample["adversarial"] - sample["clean"] for sample in examples]
    gain = amplification(max(float(np.abs(change).max()) for change in changes))
    return [
        (
            classified(sample, "clean", "Original", named),
            _amplified(f"Perturbation of image {sample['id']}", change, gain),
            classified(sample, "adversarial", "Adversarial", named),
            classified(sample, "purified", "Restored", named),
            _amplified(
                f"Difference of restored image {sample['id']} from the original",
                sample["purified"] - sample["clean"],
                gain,
            ),
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


def classified(sample: Sample, kind: str, name: str, named: Named) -> dict[str, Any]:
    """A picture of one kind of a sample, called ``name``, with the class that the classifier takes it for."""
    label, prediction = sample["label"], sample[f"pred_{kind}"]
    right = prediction == label
    verdict = "right" if right else "wrong"
    alt = f"{name} image {sample['id']}, label {named(label)}, classified as {named(prediction)}: {verdict}"
    top = [(named(answer["class"]), answer["probability"]) for answer in sample.get(f"top_{kind}") or ()]
    return _picture(sample[kind], alt, named(prediction), right, top)


def _amplified(name: str, change: Pixels, gain: float) -> dict[str, Any]:
    largest = float(np.abs(change).max())
    alt = f"{name}, amplified {gain:g} times, at most {largest:.3f}"
    return _picture(0.5 + gain * change, alt, f"×{gain:g}", None)


def _picture(
    pixels: Pixels, alt: str, note: str, right: bool | None, top: Sequence[tuple[str, float]] = ()
) -> dict[str, Any]:
    """A picture, and what stands beside it.

    ``fine``: it has more pixels than it is shown with, so that a browser had better blend them, and that it can be
    opened. ``top``: the likeliest classes and their probabilities, which an open one shows.
    """
    fine = max(pixels.shape[:2]) > SHOWN_SIDE
    uri = webp(pixels) if fine else png(pixels)
    return {"uri": uri, "alt": alt, "note": note, "right": right, "fine": fine, "top": top}


def pixels(data: bytes) -> Pixels:
    """The pixels of a PNG, (H, W, C) in [0, 1]."""
    levels = np.asarray(Image.open(io.BytesIO(data))).astype(np.float32) / np.float32(255)
    return levels if levels.ndim == 3 else levels[..., None]


def png(pixels: Pixels) -> str:
    """A PNG in a data URI."""
    return _uri(pixels, "png", optimize=True)


def webp(pixels: Pixels) -> str:
    """A WebP in a data URI: smaller than a PNG, and not quite the same pixels."""
    return _uri(pixels, "webp", quality=QUALITY)


def _uri(pixels: Pixels, format: str, **options: Any) -> str:
    levels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)
    if max(image.size) > LARGEST_SIDE:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return f"data:image/{format};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
