"""What a notebook shows of a run: the figures, one curve, and ten images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from raypurify import storage
from raypurify.cleaning import accounts
from raypurify.report import bars, certificates, cleaning, formats, images, security, templates, training
from raypurify.report.page import read_page
from raypurify.report.sections import Page, naming
from raypurify.runs.status import job_of

IMAGES = 10
"""How many images are shown."""
PICTURES = ("Original", "Adversarial", "Restored")
"""What is shown of an evaluation's image, as :mod:`raypurify.report.images` names it."""
FIGURES = ("n", "rejected", "success_adversarial", "success_rounded", "linf_max", "l2_median")
"""The figures of an attack that are shown, as ``run.json`` names them."""

CURVES: Mapping[str, Callable[[Page], Iterator[Mapping[str, Any]]]] = {
    "Accuracy by the radius of the attack": security.curves,
    "Accuracy: no defense, purified, and under the adaptive attacker": bars.charts,
    "Loss": training.curves,
}
"""Captions, and what draws curves of a page: the first curve that there is, is shown."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A run as a notebook displays it; elsewhere it names the folder of the run."""

    output: str
    """The folder of the run, as an absolute path or a URL."""
    html: str = field(repr=False)
    """One element, whose styles are its own. It loads nothing from the network, and runs no script."""

    def _repr_html_(self) -> str:
        return self.html


@dataclass(frozen=True, kw_only=True)
class Column:
    """An image that is shown: its heading, and its pictures from top to bottom."""

    heading: str
    pictures: tuple[Mapping[str, Any], ...]
    """``uri``, ``alt`` and ``note`` each; ``right``, where a classifier was asked; ``fine`` for one that is shrunk."""


def show(output: str) -> Shown:
    """What a run wrote, for a notebook: the figures, one curve where the run has one, and ten images.

    The curve of an evaluation is a security curve where an attack was made at several radii, else a chart of the
    accuracies. That of a training is its loss.

    Args:
        output: the ``--output`` of the run, a path or a URL.

    Raises:
        FileNotFoundError: the folder holds no run, or one that has not written its tables yet.
        ValueError: the run is of another version of raypurify.
        RuntimeError: a cleaning that is not finished.
    """
    output = storage.absolute(output)
    url = storage.join(output, "run.json")
    run = storage.read_json(url) if storage.exists(url) else {}
    readers: dict[str | None, Callable[[str, Mapping[str, Any]], Mapping[str, Any]]]
    readers = {"attack": _attack, "cleaning": _cleaning, "certification": _certificates}
    read = readers.get(job_of(run.get("identity", {})), _evaluation_or_training)
    return Shown(output=output, html=templates.fill("notebook.html.j2", **read(output, run)))


def _evaluation_or_training(output: str, run: Mapping[str, Any]) -> Mapping[str, Any]:
    page = read_page(output)
    drawn = ((caption, curve["svg"]) for caption, draw in CURVES.items() for curve in draw(page))
    columns = list(islice(_examples(page), IMAGES))
    return {"page": page, "figures": {}, "curve": next(drawn, None), "names": PICTURES, "columns": columns}


def _examples(page: Page) -> Iterator[Column]:
    """Examples of the first gallery, those at random first."""
    for gallery in islice(images.galleries(page), 1):
        for table in gallery["tables"]:
            headings = [attack for attack, _, examples in table["attacks"] for _ in examples]
            rows = [table["rows"][name] for name in PICTURES]
            for heading, *pictures in zip(headings, *rows, strict=True):
                yield Column(heading=heading, pictures=tuple(pictures))


def _attack(output: str, run: Mapping[str, Any]) -> Mapping[str, Any]:
    counts = [attempt["counts"] for attempt in run["attempts"]]
    figures = {name: counts[-1].get(name) for name in FIGURES} if counts else {}
    urls = storage.list_files(storage.join(output, "images"), ".parquet")
    rows = storage.read_table(urls[0]).slice(0, IMAGES).to_pylist() if urls else []
    columns = [_attacked(row, naming(run)) for row in rows]
    return {"page": None, "figures": figures, "curve": None, "names": ("Original", "Attacked"), "columns": columns}


def _attacked(row: Mapping[str, Any], named: images.Named) -> Column:
    """An image of an attacked dataset, before the attack and after it."""
    sample = {**row, "clean": images.pixels(row["clean"]), "rounded": images.pixels(row["image"])}
    names = {"clean": "Original", "rounded": "Attacked"}
    pictures = tuple(images.classified(sample, kind, name, named) for kind, name in names.items())
    return Column(heading=f"label {named(row['label'])}", pictures=pictures)


def _certificates(output: str, run: Mapping[str, Any]) -> Mapping[str, Any]:
    figures, charts = certificates.overview(output)
    return {"page": None, "figures": figures, "curve": next(charts, None), "names": (), "columns": []}


def _cleaning(output: str, run: Mapping[str, Any]) -> Mapping[str, Any]:
    totals = accounts.add_up(output)
    changes = cleaning.changes(totals, accounts.read_changes(output, totals))
    columns = [_changed(change) for change in changes[:IMAGES]]
    return {"page": None, "figures": totals.shown(), "curve": None, "names": ("Before", "After"), "columns": columns}


def _changed(change: cleaning.Change) -> Column:
    """One of the most changed images, before and after."""
    note = f"{formats.decimal(change.psnr)} dB"
    places = (("Before", change.before, ""), ("After", change.after, note))
    pictures = tuple(
        {"uri": uri, "alt": f"{name}: {change.id}", "note": note, "right": None, "fine": change.fine}
        for name, uri, note in places
    )
    return Column(heading=change.id, pictures=pictures)
