"""The page says what the tables say, and says it safely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from report_pages import Parsed, parse, render
from report_rows import HOSTILE, cell, summary_of, write_training

from raypurify import storage
from raypurify.metrics import Metric
from raypurify.report import write_report
from raypurify.runs import schema


def test_cells_hold_the_figures_of_the_summary(summary: pa.Table) -> None:
    white = parse(summary).figures("white-box")
    tail = ["22.34", "0.8765", "70.47", "0.3000", "5.432"]
    assert white == [
        ["a_net under fgsm L∞ ε = 0.3 1,797 images"],
        ["cru_net", "99.35", "8.12", "95.12 best 94.41–95.81", "not run", "98.76", "95.74", *tail],
        ["median_filter trivial", "99.35", "8.12", "41.23 40.52–41.92", "not run", "98.76", "41.50", *tail],
        ["a_net under pgd L∞ ε = 0.3 steps = 40 1,797 images"],
        ["cru_net", "99.35", "1.23", "97.31 best 96.60–98.00", "4.17 3.46–4.86", "98.76", "97.95", *tail],
        ["identity trivial", "99.35", "1.23", "1.23 0.52–1.92", "not run", "98.76", "1.24", *tail],
        ["a_net under deepfool minimal distance steps = 40 1,797 images"],
        ["cru_net", "99.35", "0.00", "98.12 97.41–98.81", "not run", "98.76", "98.76", "22.34", "–", *tail[2:4], "∞"],
    ]


def test_black_box_has_a_table_of_its_own(summary: pa.Table) -> None:
    group, line = parse(summary).figures("black-box")
    assert group == ["a_net under pgd L∞ ε = 0.3 steps = 40 1,797 images"]
    assert line[:4] == ["cru_net checkpoint=weights/cru_net-b_net", "99.35", "1.23", "93.45 92.74–94.14"]


def test_every_cell_is_listed_whole(summary: pa.Table) -> None:
    (table,) = [table for table in parse(summary).tables if table["attributes"].get("id") == "cells"]
    header, *rows = table["rows"]
    assert header == schema.SUMMARY.names
    assert [row[header.index("cell")] for row in rows] == summary["cell"].to_pylist()
    assert rows[5][header.index("l2_median")] == "inf"


def test_key_figures_are_of_the_strongest_attack_in_a_ball(summary: pa.Table) -> None:
    """DeepFool leaves no image right, but has no ball; of FGSM and PGD the stronger is PGD."""
    assert parse(summary).key_figures == ["99.35%", "1.23%", "97.31%", "4.17%"]


def test_key_figures_take_the_lowest_adaptive_attack_in_the_ball() -> None:
    rows = [
        cell(purified=0.97),
        cell(setting="adaptive", purified=0.5),
        cell(setting="adaptive", attack="fgsm", purified=0.3),
        cell(setting="adaptive", eps=0.4, purified=0.1),
        cell(setting="adaptive", purifier="jpeg", purified=0.2),
    ]
    assert parse(summary_of(*rows)).key_figures == ["99.35%", "1.23%", "97.00%", "30.00%"]


def test_key_figures_prefer_the_purifier_with_the_better_worst_case() -> None:
    rows = [
        cell(purifier="brittle", purified=0.99),
        cell(purifier="robust", purified=0.95),
        cell(purifier="untested", purified=0.999),
        cell(purifier="threshold", purified=1.0),
        cell(purifier="brittle", setting="adaptive", purified=0.01),
        cell(purifier="robust", setting="adaptive", purified=0.8),
    ]
    assert parse(summary_of(*rows)).key_figures == ["99.35%", "1.23%", "95.00%", "80.00%"]


def test_key_figures_are_of_a_purifier_that_learned_where_only_black_box_has_one() -> None:
    rows = [cell(purifier="identity", purified=0.0123), cell(setting="black-box", purified=0.75)]
    assert parse(summary_of(*rows)).key_figures[2] == "75.00%"


def test_an_adaptive_figure_that_is_missing_is_said_to_be() -> None:
    assert parse(summary_of(cell())).key_figures == ["99.35%", "1.23%", "97.31%", "not run"]


def test_adaptive_figure_is_the_lowest_and_says_how_it_differs() -> None:
    rows = [
        cell(),
        cell(setting="adaptive", purified=0.2),
        cell(setting="adaptive", purified=0.1, params={"epsilon": 0.3, "steps": 100}),
        cell(setting="adaptive", purified=0.05, eps=0.4),
    ]
    page = parse(summary_of(*rows))
    assert page.figures("white-box")[1][4] == "10.00 9.29–10.69 steps = 100; lowest of 2"
    other = page.figures("white-box, other radii")
    assert other[1][3:5] == ["not run", "5.00 4.29–5.69"], "an adaptive cell without a partner has a line of its own"


def test_radii_steps_and_noise_are_written_as_people_do() -> None:
    params = {"epsilon": 8 / 255, "step_size": 2 / 255, "decay": 0.3}
    noise = f"gaussian_noise,sigma={16 / 255}"
    summary = summary_of(
        *(cell(setting=setting, purifier=noise, eps=8 / 255, params=params) for setting in ("white-box", "adaptive"))
    )
    page = parse(summary)
    assert page.figures("white-box")[0] == ["a_net under pgd L∞ ε = 8/255 step_size = 2/255, decay = 0.3 1,797 images"]
    assert page.figures("white-box")[1][0].startswith("gaussian_noise sigma=16/255")


def test_a_users_metric_has_a_column_beside_the_others() -> None:
    mine = Metric(name="mine", measure=lambda a, b: a, unit="nats", digits=1)
    rows = [cell(mine_purified=1.25, mine_adversarial=9.0, mine_clean_purified=9.0)]
    page = parse(pa.Table.from_pylist(rows, schema.summary((mine,))))
    (table,) = [table for table in page.tables if table["attributes"].get("data-setting") == "white-box"]
    assert table["rows"][1][-6:] == ["PSNR dB", "SSIM", "PSNR Eq. 16", "mine nats", "L∞ largest", "L2 median"]
    assert page.figures("white-box")[1][-6:] == ["22.34", "0.8765", "70.47", "1.2", "0.3000", "5.432"]
    (listed,) = [table for table in page.tables if table["attributes"].get("id") == "cells"]
    assert listed["rows"][0][-3:] == ["mine_adversarial", "mine_purified", "mine_clean_purified"]


def test_a_detector_has_columns_of_its_own() -> None:
    detection = {"detection_rate": 0.62, "false_alarm_rate": 0.03, "accuracy_with_detection": 0.98}
    rows = [
        cell(**detection),
        cell(setting="adaptive", purified=0.2, **detection | {"accuracy_with_detection": 0.41}),
        cell(purifier="jpeg"),
    ]
    page = parse(summary_of(*rows))
    assert [line[7:11] for line in page.figures("white-box")[1:]] == [
        ["98.00", "41.00", "62.00", "3.00"],
        ["–", "not run", "–", "–"],
    ]
    assert "does nothing to stay undetected" in " ".join(page.text.split())
    assert "False alarms" not in " ".join(parse(summary_of(cell())).text.split()), "there is no detector"


def test_the_worst_case_of_several_attacks_has_columns_of_its_own() -> None:
    rows = [
        cell(attack="apgd", purified=0.6, accuracy_worst=0.5),
        cell(attack="fab", purified=0.55, accuracy_worst=0.5),
        cell(attack="apgd", setting="adaptive", purified=0.2, accuracy_worst=0.1),
        cell(attack="fab", setting="adaptive", purified=0.15, accuracy_worst=0.1),
        cell(attack="fab", purifier="jpeg", purified=0.3, accuracy_worst=0.3),
    ]
    page = parse(summary_of(*rows))
    assert [line[7:9] for line in page.figures("white-box") if len(line) > 1] == [
        ["50.00", "10.00"],
        ["50.00", "10.00"],
        ["–", "not run"],
    ]
    assert "under every attack of one ball" in " ".join(page.text.split())
    assert "Worst case" not in parse(summary_of(*rows[4:])).text, "there is one attack"


def test_ties_are_all_best() -> None:
    rows = [cell(purified=0.9), cell(purifier="jpeg", purified=0.9), cell(purifier="identity", purified=0.1)]
    lines = parse(summary_of(*rows)).figures("white-box")[1:]
    assert ["best" in line[3] for line in lines] == [True, True, False]


def test_charts_and_images_are_described(summary: pa.Table, samples: pa.Table, metrics: pa.Table) -> None:
    page = parse(summary, samples=samples, curves={"CRU-Net for A-net": metrics})
    labels = [attributes["aria-label"] for attributes in page.all("div") if attributes.get("role") == "img"]
    assert len(labels) == len(page.all("svg")) == 3
    assert "pgd L∞ ε = 0.3: no defense 1.23%, purified 97.31%, adaptive 4.17%" in str(labels[0]).replace("\u00a0", " ")
    assert "2,500 steps" in str(labels[2])
    images = page.all("img")
    assert images
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in images)
    assert "Adversarial image image-0, label 0, classified as 9: wrong" in [image["alt"] for image in images]
    assert "Restored image image-0, label 0, classified as 0: right" in [image["alt"] for image in images]


def test_classes_are_called_by_their_names(summary: pa.Table, samples: pa.Table) -> None:
    run = {"attempts": [{"counts": {"class_names": ["<b>bag", *["x" * 40] * 9]}}]}
    page = parse(summary, samples=samples, run=run)
    alts = [image["alt"] for image in page.all("img")]
    assert f"Adversarial image image-0, label <b>bag, classified as {'x' * 23}…: wrong" in alts
    cells = {text for table in page.tables for row in table["rows"] for text in row}
    assert {"<b>bag", "✓ <b>bag", f"✗ {'x' * 23}…"} <= cells


def test_headers_have_scopes_and_ids_are_unique(
    summary: pa.Table, samples: pa.Table, metrics: pa.Table, rejects: pa.Table, run: dict[str, Any]
) -> None:
    curves = {"one": metrics, "two": metrics}
    page = parse(summary, samples=samples, run=run, curves=curves, rejects=rejects)
    assert all(attributes.get("scope") for attributes in page.all("th"))
    ids = [str(attributes["id"]) for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = [attributes.get("aria-labelledby") for _, attributes in page.tags if attributes.get("aria-labelledby")]
    linked = [str(attributes["href"])[1:] for attributes in page.all("a")]
    drawn = [str(attributes["xlink:href"])[1:] for attributes in page.all("use")]
    assert {*used, *linked, *drawn} <= set(ids)


def test_page_asks_nothing_of_the_network(
    summary: pa.Table, samples: pa.Table, metrics: pa.Table, run: dict[str, Any]
) -> None:
    page = parse(summary, samples=samples, run=run, curves={"CRU-Net": metrics})
    assert page.all("script") == []
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "@import" not in page.text


def test_hostile_names_are_text(summary: pa.Table, samples: pa.Table, metrics: pa.Table, rejects: pa.Table) -> None:
    names = dict.fromkeys(("dataset", "classifier", "attack", "purifier", "norm", "victim"), HOSTILE)
    row = cell(params={HOSTILE: HOSTILE}) | names
    sample = samples.slice(0, 1).to_pylist()[0] | {"id": HOSTILE, "cell": row["cell"]}
    reject = {"id": HOSTILE, "url": HOSTILE, "stage": HOSTILE, "reason": HOSTILE}
    attempt = {"id": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    page = parse(
        summary_of(row, row | {"setting": "adaptive", "cell": "other"}),
        samples=pa.Table.from_pylist([sample], schema=schema.SAMPLES),
        run={"identity": {HOSTILE: HOSTILE}, "attempts": [attempt]},
        curves={HOSTILE: metrics},
        rejects=pa.Table.from_pylist([reject], schema=schema.REJECTS),
    )
    assert page.all("script") == []
    assert page.text.count(HOSTILE) > 15
    assert any(HOSTILE in str(image["alt"]) for image in page.all("img"))


def test_credentials_are_never_shown(summary: pa.Table) -> None:
    secrets = {
        "aws_secret_access_key": "s3cr3t-a",
        "storage": {"key": "s3cr3t-b", "token": "s3cr3t-c"},
        "urls": ["s3://user:s3cr3t-d@bucket/x", "https://host/x?sig=s3cr3t-e&more=s3cr3t-f"],
    }
    run = {"identity": secrets, "attempts": [{"id": "a", "hardware": {"password": "s3cr3t-g"}}]}
    row = cell(purifier="cru_net,checkpoint=https://host/model?sig=s3cr3t-h")
    page = render(summary_of(row), run=run)
    assert "s3cr3t" not in page
    assert "s3://…@bucket/x" in page
    assert "https://host/model?…" in page


def test_run_and_rejects_are_shown(summary: pa.Table, run: dict[str, Any], rejects: pa.Table) -> None:
    page = parse(summary, run=run, rejects=rejects)
    shown = [row for table in page.tables for row in table["rows"]]
    times = "2024-05-01T10:00:00+00:00", "2024-05-01T10:03:20+00:00", "3 min 20 s"
    assert ["a1", *times, "1,800", "1,788", "12", "0"] in shown
    assert ["cats/9.png", "s3://bucket/cats/9.png", "decode", "truncated"] in shown
    assert "12 images were rejected" in page.text
    assert "cats/10.png" not in page.text
    assert "cpu.model" in page.text
    assert "Some CPU" in page.text
    assert "2.40.0" in page.text
    assert '"seed": 7' in page.text
    assert '"workers": 3' in page.text


def test_warnings_of_all_attempts_are_shown(summary: pa.Table, run: dict[str, Any]) -> None:
    warned = [{"counts": {"warnings": ["a_net was trained on it", "no cat"]}}, {"counts": {"warnings": ["no cat"]}}]
    text = parse(summary, run=run | {"attempts": warned}).text
    assert text.count("no cat") == text.count("a_net was trained on it") == 1


@pytest.mark.parametrize(
    "run",
    [
        {},
        {"identity": {}, "attempts": []},
        {"attempts": [{"id": "a", "started": "2024-05-01T10:00:00+00:00", "ended": None, "counts": {"in": 3}}]},
    ],
)
def test_what_run_json_lacks_is_left_out(summary: pa.Table, run: dict[str, Any]) -> None:
    assert len(parse(summary, run=run).figures("white-box")) == 8


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [cell(attack="none", eps=None, params="{}")],
        [cell(setting="adaptive")],
        [cell(setting="black-box"), cell(setting="transfer")],
        [cell(purifier="identity"), cell(purifier="jpeg")],
        [cell(purifier="identity")],
        [cell(clean=0.0, purified=0.0)],
    ],
    ids=["empty", "no attack", "adaptive only", "no white-box", "trivial only", "identity only", "zero"],
)
def test_partial_summaries_render(rows: list[dict[str, Any]]) -> None:
    page = parse(summary_of(*rows))
    listed = [table for table in page.tables if table["attributes"].get("id") == "cells"]
    assert sum(len(table["rows"]) - 1 for table in listed) == len(rows)


def test_a_table_of_another_version_is_refused(summary: pa.Table) -> None:
    with pytest.raises(ValueError, match="summary table lacks the columns norm, accuracy_clean;"):
        render(summary.drop_columns(["norm", "accuracy_clean"]))


@pytest.mark.parametrize("losses", [[np.nan, np.inf], [0.0, 0.0], [1.0], [np.nan, 0.5, 0.4]])
def test_odd_losses_do_not_stop_the_report(summary: pa.Table, metrics: pa.Table, losses: list[float]) -> None:
    table = metrics.slice(0, len(losses)).set_column(2, schema.STEPS.field("loss"), pa.array(losses))
    page = parse(summary, curves={"odd": table})
    assert ("id", "training") in {item for tag, attributes in page.tags for item in attributes.items()} or not np.any(
        np.isfinite(losses)
    )


def test_write_report_reads_what_an_evaluation_wrote(
    tmp_path: Path, summary: pa.Table, samples: pa.Table, metrics: pa.Table, rejects: pa.Table, run: dict[str, Any]
) -> None:
    output = str(tmp_path / "out")
    storage.write_table(f"{output}/summary.parquet", summary)
    storage.write_table(f"{output}/samples/a.parquet", samples.slice(0, 10))
    storage.write_table(f"{output}/samples/b.parquet", samples.slice(10))
    storage.write_table(f"{output}/rejects/a.parquet", rejects)
    storage.write_json(f"{output}/run.json", run)
    url = write_report(output, curves={"CRU-Net": metrics})
    assert url == f"{output}/report.html"
    expected = render(summary, samples=samples, run=run, curves={"CRU-Net": metrics}, rejects=rejects)
    assert Path(url).read_text(encoding="utf-8") == expected


def test_write_report_of_a_bucket(summary: pa.Table) -> None:
    storage.write_table("memory://report-test/summary.parquet", summary)
    url = write_report("memory://report-test")
    assert Parsed(storage.read_bytes(url).decode()).figures("white-box")


def test_write_report_of_a_training(tmp_path: Path, metrics: pa.Table) -> None:
    storage.write_table(str(tmp_path / "metrics.parquet"), metrics)
    page = Parsed(Path(write_report(str(tmp_path))).read_text(encoding="utf-8"))
    assert len(page.all("svg")) == 1
    assert "2,500 steps in 5 epochs" in page.text


def test_the_page_of_a_training_tells_of_its_epochs_classes_and_settings(
    tmp_path: Path, metrics: pa.Table, run: dict[str, Any]
) -> None:
    write_training(tmp_path, metrics, run)
    page = Parsed(Path(write_report(str(tmp_path))).read_text(encoding="utf-8"))
    assert len(page.all("svg")) == 2
    text = " ".join(page.text.split())
    assert "a_net trained on digits" in text
    assert "5 epochs, of 8 at most; at the end the loss is" in text
    assert "The best epoch by accuracy is 4: its network is in best/" in text
    by_epoch, classes = (table["rows"] for table in page.tables[:2])
    assert by_epoch[0] == ["Epoch", "Loss, mean", "accuracy", "Images/s"]
    assert [row[0] for row in by_epoch[1:]] == ["1", "2", "3", "4 best", "5"]
    assert by_epoch[4][2:] == ["0.9500", "466"]
    assert classes[1:] == [["cat", "900", "100"], [HOSTILE, "450", "50"], ["all", "1,350", "150"]]
    assert "12,345" in text


def test_many_classes_are_folded(tmp_path: Path, metrics: pa.Table, run: dict[str, Any]) -> None:
    write_training(tmp_path, metrics, run)
    assert "<summary id=" not in Path(write_report(str(tmp_path))).read_text(encoding="utf-8")
    rows = [{"label": label, "name": f"class {label}", "trained": 1, "held_out": 0} for label in range(1000)]
    storage.write_table(str(tmp_path / "classes.parquet"), pa.Table.from_pylist(rows, schema.CLASSES))
    text = Path(write_report(str(tmp_path))).read_text(encoding="utf-8")
    page = Parsed(text)
    assert len(page.tables[1]["rows"]) == 1002
    assert '<summary id="classes">1,000 classes</summary>' in text


def test_one_epoch_is_a_whole_number(tmp_path: Path, metrics: pa.Table, run: dict[str, Any]) -> None:
    write_training(tmp_path, metrics.slice(0, 500), run)
    told = {"epoch": 1, "images": 500, "validation": [{"accuracy": 0.3}], "best": 1, "criterion": "accuracy"}
    storage.write_json(str(tmp_path / "model/metrics.json"), told)
    text = Path(write_report(str(tmp_path))).read_text(encoding="utf-8")
    scores = text[text.index("Scores of the held-out images") :]
    assert [tick for tick in ("0.98", "1.00", "1.02") if f">{tick}</text>" in scores or f"<!-- {tick}" in scores] == []


def test_without_a_purifier_to_draw_there_are_no_bars() -> None:
    text = render(summary_of(cell(purifier="identity", purified=0.0123)))
    assert "Accuracy under each attack" not in text
    assert "Accuracy under each attack" in render(summary_of(cell()))


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected summary.parquet .* or metrics.parquet"):
        write_report(str(tmp_path))
