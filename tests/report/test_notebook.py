"""A run shows itself in a notebook: the figures, one curve, ten images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from report_pages import Parsed
from report_rows import cell, curve, samples_of, summary_of

import raypurify
from raypurify import storage
from raypurify.cleaning.accounts import CHANGES

SHARES = {0.1: (0.5, 0.9, 0.4), 0.2: (0.2, 0.8, 0.1)}


def shown(folder: Path, *cells: dict[str, Any]) -> Parsed:
    summary = summary_of(*cells)
    storage.write_table(str(folder / "summary.parquet"), summary)
    storage.write_table(str(folder / "samples" / "a.parquet"), samples_of(summary))
    return Parsed(raypurify.show(str(folder))._repr_html_())


def test_an_evaluation_shows_its_figures_a_security_curve_and_ten_images(tmp_path: Path) -> None:
    page = shown(tmp_path, *curve("pgd", SHARES), *curve("fgsm", SHARES))
    figures, images = page.tables
    assert figures["rows"][0] == ["Attack", "Purifier", "Clean", "No defense", "Purified", "Adaptive attacker"]
    named = "a_net under pgd, L∞\u00a0ε\u00a0=\u00a00.2, white-box"
    assert [named, "cru_net", "99.35%", "20.00%", "80.00%", "10.00%"] in [
        [cell.replace(" ε = ", "\u00a0ε\u00a0=\u00a0") for cell in row] for row in figures["rows"]
    ]
    assert len(figures["rows"]) == 1 + 4, "the adaptive figure stands beside the other one"
    assert len(page.all("svg")) == 1
    assert "ε" in page.text
    assert [row[0] for row in images["rows"]] == ["", "Original", "Adversarial", "Restored"]
    assert {len(row) for row in images["rows"]} == {1 + 10}
    assert len(page.all("img")) == 30
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in page.all("img"))
    assert images["rows"][2][1:] == ["✗ 9"] * 10


def test_figures_that_were_not_run_are_said_to_be(tmp_path: Path) -> None:
    page = shown(tmp_path, cell())
    assert page.tables[0]["rows"][1][-1] == "not run"
    assert len(page.all("svg")) == 1, "where there is no curve, a chart"


def test_names_are_escaped(tmp_path: Path) -> None:
    page = shown(tmp_path, cell(attack="<script>alert(1)</script>"))
    assert not page.all("script")
    assert not page.all("style"), "the notebook keeps its own styles"


def test_a_training_shows_its_loss(tmp_path: Path, metrics: pa.Table) -> None:
    storage.write_table(str(tmp_path / "metrics.parquet"), metrics)
    page = Parsed(raypurify.show(str(tmp_path))._repr_html_())
    assert (len(page.all("svg")), page.tables) == (1, [])


def test_an_attack_and_a_cleaning_show_their_figures_and_images(small_classifier: str, tmp_path: Path) -> None:
    attacked, cleaned = str(tmp_path / "attack"), str(tmp_path / "clean")
    common: dict[str, Any] = {"engine": "local", "actors": 1}
    raypurify.attack(
        input="digits",
        classifier=small_classifier,
        attack="fgsm,epsilon=0.2",
        limit=12,
        png=True,
        output=attacked,
        **common,
    )
    raypurify.clean(input=f"{attacked}/png", purifier="median_filter", output=cleaned, **common)
    for output, heading, names, images in (
        (attacked, "success rounded", ["", "Original", "Attacked"], 10),
        (cleaned, "cleaned", ["", "Before", "After"], CHANGES),
    ):
        page = Parsed(raypurify.show(output)._repr_html_())
        figures, pictures = page.tables
        assert figures["rows"][1][figures["rows"][0].index("n" if output == attacked else heading)] == "12"
        assert heading in figures["rows"][0]
        assert [row[0] for row in pictures["rows"]] == names
        assert len(page.all("img")) == 2 * images


def test_elsewhere_a_result_names_its_folder(tmp_path: Path, summary: pa.Table) -> None:
    storage.write_table(str(tmp_path / "summary.parquet"), summary)
    assert repr(raypurify.show(str(tmp_path))) == f"Shown(output={str(tmp_path)!r})"


def test_a_folder_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing to report in"):
        raypurify.show(str(tmp_path))
