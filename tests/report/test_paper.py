"""The paper's tables beside what was measured."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from browser import Tab

from raypurify.report import paper
from raypurify.runs import schema

FIGURES = {
    "n": 1000,
    "accuracy_clean": 0.99,
    "accuracy_adversarial": 0.2,
    "accuracy_purified": 0.98,
    "accuracy_clean_purified": 0.985,
    "ssim_purified": 0.9,
    "psnr_purified": 30.0,
}


def cell(purifier: str, trained_for: str | None, **more: Any) -> paper.Measured:
    figures = {**FIGURES, **more.pop("figures", {})}
    usual: dict[str, Any] = {"dataset": "mnist", "classifier": "a_net", "attack": "fgsm", "parameters": "calibrated"}
    usual |= {"eps": 0.15, "attacked_by": "ε = 0.15"}
    usual |= {"purifier": purifier, "trained_for": trained_for, "trivial": trained_for is None}
    return paper.Measured(figures=figures, **{**usual, **more})


MEASURED = [
    cell("identity", None, figures={"accuracy_purified": 0.2}),
    cell("threshold", None, figures={"accuracy_purified": 0.9, "ssim_purified": 0.8}),
    cell("median_filter", None, figures={"accuracy_purified": 0.7, "ssim_purified": 0.95}),
    cell("cru_net-a_net", "a_net"),
    cell("cru_net-a_net-seed1", "a_net", figures={"accuracy_purified": 0.97}),
    cell("cru_net-b_net", "b_net", figures={"accuracy_purified": 0.5}),
    cell("cru_net-a_net", "a_net", attack="stadv", eps=None, parameters="fixed", attacked_by="any distance"),
]
ADAPTIVE = [
    paper.AdaptiveAccuracy(dataset="mnist", classifier="a_net", trained_for="a_net", eps=eps, accuracy=accuracy, n=500)
    for eps, accuracy in ((0.15, 0.4), (0.3, 0.05))
]


def test_the_papers_figures_are_whole() -> None:
    found = paper.published()
    assert [len(found[kind]) for kind in ("accuracy", "similarity")] == [48, 48]
    assert sorted({row["table"] for kind in ("accuracy", "similarity") for row in found[kind]}) == [2, 3, 4, 5, 6, 7]
    for row in found["accuracy"]:
        assert 0 < row["no_defense"] < row["cru_net"] < 1
        assert set(paper.target(row["target"])) <= {"a_net", "b_net", "d_net", "m_net"}
    assert paper.no_defense("mnist", "fgsm", "a_net") == 0.2244
    assert paper.no_defense("cifar10", "stadv", "m_net") == paper.no_defense("cifar10", "rotation_translation", "m_net")


def test_a_row_stands_beside_the_papers() -> None:
    rows = paper.accuracy_table(MEASURED, ADAPTIVE).to_pylist()
    white, black, spatial = rows[0], next(row for row in rows if row["table"] == 4), rows[1]
    assert len(rows) == 3
    assert (white["table"], white["target"], white["paper_cru_net"]) == (2, "A-Net", 0.9935)
    assert white["cru_net"] == pytest.approx(0.975)
    assert (white["seeds"], white["lowest"], white["highest"]) == (2, 0.97, 0.98)
    assert white["difference"] == pytest.approx(0.975 - 0.9935)
    assert white["ratio"] == pytest.approx(0.975 / 0.99)
    assert (white["best_trivial"], white["margin"]) == ("threshold", pytest.approx(0.075))
    assert (white["adaptive"], white["adaptive_eps"]) == (0.4, 0.15)
    assert (black["target"], black["cru_net"], black["adaptive"]) == ("A-net/B-net", 0.5, None)
    assert (spatial["attack"], spatial["reading"], spatial["parameters"]) == ("SPA", "flow", "fixed")
    assert (spatial["adaptive"], spatial["adaptive_eps"]) == (0.05, 0.3), "no ball of its own: the largest"
    assert spatial["best_trivial"] is None


def test_cells_that_the_paper_cannot_have_right_are_marked() -> None:
    cells = [cell("cru_net-a_net", "a_net", attack=attack) for attack in ("fgsm", "r_fgsm")]
    rows = paper.accuracy_table(cells, []).to_pylist()
    assert [(row["attack"], row["impossible"]) for row in rows] == [("FGSM", False), ("R-FGSM", True)]


def test_psnr_is_told_both_ways() -> None:
    row = paper.similarity_table(MEASURED).to_pylist()[0]
    assert (row["table"], row["paper_ssim"], row["ssim"], row["best_trivial_ssim"]) == (6, 0.9996, 0.9, 0.95)
    assert row["psnr_eq16"] - row["psnr"] == pytest.approx(20 * np.log10(255), abs=1e-9)


def curve() -> pa.Table:
    steps = [{"epoch": 0, "step": step, "loss": 1.0 / (step + 1), "images_per_second": 9.0} for step in range(9)]
    table = pa.Table.from_pylist(steps)
    assert set(table.column_names) <= set(schema.STEPS.names)
    return table


def page_of(*more: paper.Measured) -> str:
    accuracy = paper.accuracy_table([*MEASURED, *more], ADAPTIVE)
    return paper.render(
        accuracy,
        paper.similarity_table(MEASURED),
        charts=paper.charts(accuracy, {"cru_net-a_net": curve()}),
        runs={"A <run>": "evaluation/report.html"},
        facts={"epochs": "20"},
    )


def test_the_page_shows_signs_readings_and_runs() -> None:
    page = page_of(cell("cru_net-a_net", "a_net", attack="pgd", figures={"accuracy_purified": 1.0}))
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))
    assert "Table 2: white-box, mnist" in text
    assert "Table 6: similarity" in text
    assert '<span class="loss">−1.85</span>' in page
    assert '<span class="gain">+0.67</span>' in page
    assert "97.00–98.00" in text
    assert "A &lt;run&gt;" in page
    assert "Table 2: the share of clean accuracy is the paper's or more in 1 of 2 calibrated cells" in text
    assert not re.findall(r"https?://(?!www\.w3\.org)", page)


def test_each_chart_is_a_file_of_its_own() -> None:
    files = paper.charts(paper.accuracy_table(MEASURED, ADAPTIVE), {"cru_net-a_net": curve()}).files
    assert list(files) == [
        "accuracy-mnist-white-box-A-Net.svg",
        "accuracy-mnist-black-box-A-net-B-net.svg",
        "loss-cru_net-a_net.svg",
    ]
    for svg in files.values():
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert "var(" not in svg
        assert "#1f64ad" in svg, "the light mode's colour of what is purified"


def column(tab: Tab, number: int) -> list[str]:
    """The first lines of the cells of one column of the first table."""
    cells = "[...document.querySelector('table.sortable').tBodies[0].rows].map(row => row.cells[%d].innerText)"
    return [text.partition("\n")[0] for text in tab.evaluate(cells % number)]


def test_a_heading_sorts_its_table_down_up_and_back(tab: Tab, tmp_path: Path) -> None:
    more = [
        cell("cru_net-a_net", "a_net", attack=attack, figures={"accuracy_purified": restored})
        for attack, restored in (("r_fgsm", 0.9), ("pgd", 0.995), ("deepfool", 0.95))
    ]
    (tmp_path / "report.html").write_text(page_of(*more))
    tab.complaints.clear()
    tab.open((tmp_path / "report.html").as_uri(), width=1280)
    written = column(tab, 0)
    assert written == ["FGSM", "R-FGSM", "PGD", "DFA", "SPA"]
    head = "[...document.querySelectorAll('table.sortable')[0].tHead.rows[1].cells][3]"
    assert tab.evaluate(f"{head}.innerText") == "CRU-Net"
    for told, order in (
        ("descending", ["PGD", "FGSM", "DFA", "R-FGSM", "SPA"]),
        ("ascending", ["R-FGSM", "DFA", "FGSM", "PGD", "SPA"]),
        (None, written),
    ):
        tab.evaluate(f"{head}.querySelector('button').click()")
        assert tab.evaluate(f"{head}.getAttribute('aria-sort')") == told
        assert column(tab, 0) == order, "what was not measured stays last"
    tab.evaluate("document.querySelector('table.sortable').tHead.rows[0].cells[0].querySelector('button').click()")
    assert column(tab, 0) == ["SPA", "R-FGSM", "PGD", "FGSM", "DFA"]
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1280
    assert tab.complaints == []


def test_a_page_keeps_what_another_command_measured() -> None:
    other = paper.accuracy_table([cell("cru_net-b_net", "b_net", classifier="b_net")], [])
    own = paper.accuracy_table(MEASURED, ADAPTIVE)
    both = paper.merged(own, other)
    assert paper.cases(both) == [("mnist", "a_net"), ("mnist", "b_net")]
    assert [row["table"] for row in both.to_pylist()] == [2, 2, 2, 4]
    assert paper.merged(own, both).num_rows == both.num_rows
    assert paper.merged(own, own).to_pylist() == own.to_pylist()
