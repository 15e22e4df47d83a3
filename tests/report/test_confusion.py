"""What attacked images are taken for, before they are purified and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from browser import Tab
from report_pages import Parsed, parse
from report_rows import HOSTILE, cell, summary_of

from raypurify import storage
from raypurify.report import write_report
from raypurify.runs import schema

Pairs = Mapping[tuple[int, int], int]


def rows_of(key: str, before: Pairs, after: Pairs) -> list[dict[str, Any]]:
    return [
        {"cell": key, "kind": kind, "label": label, "predicted": predicted, "n": n}
        for kind, pairs in (("adversarial", before), ("purified", after))
        for (label, predicted), n in pairs.items()
    ]


def page(*cells: tuple[dict[str, Any], Pairs, Pairs], names: list[str] | None = None) -> Parsed:
    rows = [row for summary, before, after in cells for row in rows_of(summary["cell"], before, after)]
    run = {"attempts": [{"id": "a1", "counts": {"class_names": names}}]} if names else {}
    summary = summary_of(*(summary for summary, _, _ in cells))
    return parse(summary, run=run, confusion=pa.Table.from_pylist(rows, schema.CONFUSION))


def matrices(parsed: Parsed) -> list[list[list[str]]]:
    return [table["rows"] for table in parsed.tables if table["attributes"].get("class") == "matrix"]


def test_each_label_s_images_stand_in_a_row_before_and_after() -> None:
    before, after = {(0, 1): 5, (1, 0): 7}, {(0, 0): 4, (0, 1): 1, (1, 1): 7}
    shown = page((cell(), before, after), names=["cat", HOSTILE])
    first, second = matrices(shown)
    assert [row[1:] for row in first[1:]] == [["", "5"], ["7", ""]]
    assert [row[1:] for row in second[1:]] == [["4", "1"], ["", "7"]]
    assert first[0][1] == first[1][0] == "cat"
    assert not shown.all("script")
    shares = [cell["style"] for cell in shown.all("td") if "--share" in (cell.get("style") or "")]
    assert shares == [f"--share: {share}" for share in ("1.000", "1.000", "0.800", "0.200", "1.000")]


def test_the_attack_that_leaves_least_right_stands_for_a_purifier() -> None:
    weak, strong = cell(attack="fgsm", purified=0.9), cell(purified=0.5)
    trivial = cell(purifier="threshold", purified=0.1)
    adaptive = cell(setting="adaptive", purified=0.2)
    shown = page(*((row, {(0, 1): n}, {(0, 0): n}) for n, row in enumerate((weak, strong, trivial, adaptive), 1)))
    assert [matrix[1][2] for matrix in matrices(shown)[::2]] == ["2", "4"]


def test_of_many_classes_the_most_frequent_mistakes_are_told() -> None:
    before = {(label, (label + 1) % 40): 3 for label in range(40)}
    after = {**{(label, label): 2 for label in range(40)}, (7, 9): 5, (8, 9): 1}
    shown = page((cell(), before, after))
    assert matrices(shown) == []
    (table,) = [table["rows"] for table in shown.tables if "Taken for" in table["rows"][0]]
    assert table[1:4] == [["7", "9", "0", "5"], ["8", "9", "3", "1"], ["0", "1", "3", "0"]]
    assert len(table) == 13


@pytest.mark.parametrize("width", [1280, 390])
def test_matrices_fit(tab: Tab, tmp_path: Path, width: int) -> None:
    summary = cell()
    pairs = {(label, predicted): 1000 for label in range(10) for predicted in range(10)}
    storage.write_table(storage.join(str(tmp_path), "summary.parquet"), summary_of(summary))
    confusion = pa.Table.from_pylist(rows_of(summary["cell"], pairs, pairs), schema.CONFUSION)
    storage.write_table(storage.join(str(tmp_path), "confusion.parquet"), confusion)
    tab.complaints.clear()
    tab.open(Path(write_report(str(tmp_path))).as_uri(), width=width)
    assert tab.evaluate("document.querySelectorAll('#confusion table.matrix').length") == 2
    assert tab.evaluate("document.documentElement.scrollWidth") <= width, "the page itself scrolls sideways"
    ground = "getComputedStyle(document.querySelector('#confusion td.same')).backgroundColor"
    assert tab.evaluate(ground) != "rgba(0, 0, 0, 0)"
    assert tab.complaints == []
