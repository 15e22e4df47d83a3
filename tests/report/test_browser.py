"""The page in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from browser import Tab
from report_rows import cell, checked, curve, summary_of, write_training

from raypurify import storage
from raypurify.report import write_report


@pytest.fixture
def page(
    tmp_path: Path,
    summary: pa.Table,
    samples: pa.Table,
    metrics: pa.Table,
    rejects: pa.Table,
    run: dict[str, Any],
) -> str:
    """The file URL of a whole report."""
    output = str(tmp_path)
    storage.write_table(storage.join(output, "summary.parquet"), summary)
    storage.write_table(storage.join(output, "samples", "part-0.parquet"), samples)
    storage.write_table(storage.join(output, "rejects", "part-0.parquet"), rejects)
    storage.write_json(storage.join(output, "run.json"), run)
    return Path(write_report(output, curves={"CRU-Net": metrics})).as_uri()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_page_loads_whole_and_quietly(tab: Tab, page: str, width: int, dark: bool) -> None:
    tab.requested.clear()
    tab.complaints.clear()
    tab.open(page, width=width, dark=dark)

    assert tab.evaluate("document.querySelectorAll('table.figures tbody tr:not(.group)').length") == 6
    assert (
        tab.evaluate("document.images.length") == tab.evaluate("document.querySelectorAll('.gallery img').length") > 0
    )
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth === 12)")
    assert tab.evaluate("[...document.querySelectorAll('figure svg')].every(svg => svg.getBBox().width > 100)")
    assert tab.evaluate("document.querySelectorAll('figure svg').length") == 3
    assert tab.evaluate("document.documentElement.scrollWidth") <= width, "the page itself scrolls sideways"
    assert [url for url in tab.requested if not url.startswith("data:")] == [page]
    assert tab.complaints == []


@pytest.mark.parametrize("width", [1280, 390])
def test_curves_and_warnings_fit(tab: Tab, tmp_path: Path, width: int) -> None:
    found = checked("zero_gradient", "single_step", zero_gradient_share=0.4, accuracy_single_step=0.2)
    rows = [
        *curve("pgd", {0.1: (0.6, 0.97, 0.5), 0.2: (0.2, 0.95, 0.21), 0.3: (0.01, 0.9, 0.04)}),
        *(cell(setting="transfer", eps=eps) for eps in (0.1, 0.3)),
        cell(attack="fgsm", setting="adaptive", purified=0.03, **found),
    ]
    storage.write_table(storage.join(str(tmp_path), "summary.parquet"), summary_of(*rows))
    tab.complaints.clear()
    tab.open(Path(write_report(str(tmp_path))).as_uri(), width=width)

    assert tab.evaluate("document.querySelectorAll('#security svg').length") == 2
    assert tab.evaluate("[...document.querySelectorAll('#security svg')].every(svg => svg.getBBox().width > 100)")
    assert tab.evaluate("document.querySelectorAll('.warning').length") == 2
    assert tab.evaluate("[...document.querySelectorAll('details')].every(folded => !folded.open)")
    for _ in range(2):  # folded and unfolded
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, "the page itself scrolls sideways"
        tab.evaluate("document.querySelectorAll('details').forEach(folded => folded.open = true)")
    assert tab.complaints == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_of_a_training_fits(
    tab: Tab, tmp_path: Path, metrics: pa.Table, run: dict[str, Any], width: int
) -> None:
    write_training(tmp_path, metrics, run)
    tab.complaints.clear()
    tab.open(Path(write_report(str(tmp_path))).as_uri(), width=width)
    assert tab.evaluate("document.querySelectorAll('figure svg').length") == 2
    assert tab.evaluate("[...document.querySelectorAll('figure svg')].every(svg => svg.getBBox().width > 100)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width, "the page itself scrolls sideways"
    assert tab.complaints == []


def test_text_is_legible_in_both_modes(tab: Tab, page: str) -> None:
    """WCAG's contrast of 4.5 between each text variable and each ground it stands on."""
    contrast = """(() => {
        const style = getComputedStyle(document.documentElement);
        const luminance = name => {
            const probe = document.createElement('i');
            probe.style.color = style.getPropertyValue(name);
            document.body.append(probe);
            const channels = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(value => {
                const share = value / 255;
                return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
            });
            probe.remove();
            return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2];
        };
        const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const grounds = {
            '--page': ['--text', '--muted', '--purified', '--right', '--wrong'], '--raised': ['--text', '--muted'],
            '--purified-soft': ['--text'], '--adaptive-soft': ['--text'],
        };
        return Object.entries(grounds).flatMap(([ground, texts]) =>
            texts.map(text => [text, ground, ratio(luminance(text), luminance(ground))]));
    })()"""
    for dark in (False, True):
        tab.open(page, width=1280, dark=dark)
        measured = tab.evaluate(contrast)
        assert len(measured) == 9
        assert all(ratio >= 4.5 for _, _, ratio in measured), measured


def test_dark_mode_recolours_the_charts(tab: Tab, page: str) -> None:
    fills = []
    for dark in (False, True):
        tab.open(page, width=1280, dark=dark)
        fills.append(tab.evaluate("getComputedStyle(document.querySelector('#bars svg text')).fill"))
    assert fills[0] != fills[1]
