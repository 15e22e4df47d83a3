"""The paper's tables, from data to page, at the smallest sizes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raypurify import storage
from raypurify.jobs.reproduce_paper import PaperArguments, main
from raypurify.report import paper

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"seeds": 0}, "seeds must be at least 1; got 0"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"datasets": ()}, "datasets must be at least 1"),
        ({"datasets": ("mnist",), "classifiers": ("d_net",)}, "classifiers: d_net: expected some of a_net, b_net"),
        ({"calibration_images": 1001}, "calibration_images must be at most 1000"),
    ],
)
def test_sizes_that_cannot_be_are_refused(flags: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        PaperArguments(**flags)


def test_a_classifier_that_is_missing_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match="a_net"):
        main(PaperArguments(output=str(tmp_path / "run"), weights=str(tmp_path), local=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif("RAYPURIFY_DATA" not in os.environ, reason="RAYPURIFY_DATA names no folder with MNIST")
def test_the_tables_are_whole_and_the_same_when_the_run_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = PaperArguments(
        output=str(tmp_path),
        weights=str(ROOT / "weights"),
        datasets=("mnist",),
        attacked_images=640,
        minimal_images=16,
        search_images=4,
        epochs=1,
        limit=16,
        minimal_limit=8,
        search_limit=2,
        adaptive_limit=4,
        calibration_images=16,
        calibration_search_images=2,
        local=True,
    )
    write, cut_off = storage.write_bytes, []

    def failing(url: str, data: bytes) -> None:
        """Fail once, where the second classifier's evaluations begin to be written."""
        if "mnist-b_net/in-balls/" in url and not cut_off:
            cut_off.append(url)
            raise OSError("no space left")
        write(url, data)

    monkeypatch.setattr(storage, "write_bytes", failing)
    with pytest.raises(OSError, match="no space left"):
        main(arguments)
    first = pq.read_table(tmp_path / "tables/accuracy.parquet").to_pylist()
    assert {paper.target(row["target"])[0] for row in first} == {"a_net"}
    main(arguments)
    told = capsys.readouterr().out
    assert "already finished" in told
    rows = pq.read_table(tmp_path / "tables/accuracy.parquet").to_pylist()
    assert rows[: len(first)] == first or [row for row in rows if row in first] == first
    for table in (2, 4):
        found = [row for row in rows if row["table"] == table]
        assert len(found) == 2 * 7 * 2, "two targets, seven attacks, two strengths"
        assert all(row["adaptive"] is not None and row["best_trivial"] for row in found)
    similar = pq.read_table(tmp_path / "tables/similarity.parquet").to_pylist()
    assert len(similar) == 28
    page = (tmp_path / "report.html").read_text()
    links = [f"evaluation/mnist-{name}/in-balls/report.html" for name in ("a_net", "b_net")]
    assert all(link in page and (tmp_path / link).exists() for link in links)
    before = (tmp_path / "tables/accuracy.csv").read_bytes()
    main(arguments)
    assert (tmp_path / "tables/accuracy.csv").read_bytes() == before
