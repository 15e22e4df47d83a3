"""The page of a cleaning says what became of the images, and says it safely."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Tab
from PIL import Image
from report_pages import Parsed

from raypurify import storage
from raypurify.cleaning.accounts import Totals
from raypurify.report import formats, throughput
from raypurify.report.cleaning import REASONS_SHOWN, cleaning_page, write_cleaning_report
from raypurify.runs import schema

HOSTILE = "<script>alert('x')</script>"
LONG = "a-very-long-key/" * 64
RTL = "صور/قطة.png"


def changed(key: str, *, psnr: float = 20.0, side: int = 28, **values: Any) -> dict[str, Any]:
    """A row of ``schema.MANIFEST``."""
    row = {
        "id": key,
        "source": f"s3://bucket/{key}",
        "output": f"s3://clean/images/{key}",
        "row": None,
        "width": side,
        "height": side,
        "channels": 3,
        "notes": [],
        "linf": 31 / 255,
        "l2": 3.0,
        "psnr": psnr,
        "ssim": 0.8123 if side >= 11 else None,
        "pred_input": 3,
        "pred_cleaned": 3,
        "detected": None,
        "purifier_sha256": "ab",
    } | values
    assert list(row) == schema.MANIFEST.names
    return row


def picture(key: str, *, side: int = 28) -> dict[str, Any]:
    """A row of ``schema.CHANGES``."""
    encoded = []
    for grey in (80, 120):
        out = io.BytesIO()
        Image.fromarray(np.full((side, side, 3), grey, np.uint8)).save(out, format="PNG")
        encoded.append(out.getvalue())
    row = {"id": key, "psnr": 20.0, "input": encoded[0], "cleaned": encoded[1]}
    assert list(row) == schema.CHANGES.names
    return row


def attempt(started: str, ended: str | None, **counts: Any) -> dict[str, Any]:
    return {
        "id": started[3:5],
        "started": f"2024-05-{started}+00:00",
        "ended": ended and f"2024-05-{ended}+00:00",
        "versions": {"python": "3.11.2"},
        "hardware": {"nodes": 2},
        "config": {"actors": 8},
        "counts": counts,
    }


def timeline(seconds: float, images: int, points: int = 400) -> list[list[float]]:
    steps = np.linspace(1 / points, 1, points)
    return [[round(float(seconds * step), 3), int(images * step)] for step in steps]


def run_of(*attempts: dict[str, Any], **identity: Any) -> dict[str, Any]:
    asked = {"input": "s3://bucket/photos", "purifier": "weights/cru_net", "classifier": None, "shards": "mirror"}
    return {"identity": asked | {"limit": None, "purifier_sha256": "ab"} | identity, "attempts": list(attempts)}


ONE = attempt(
    "01T22:00:00",
    "02T00:00:00",
    **{"in": 7200, "out": 7000, "rejected": 200, "requests": 15000, "retries": 120, "images_per_second": 1.25},
    bytes_in=48_200_000_000,
    bytes_out=5_000,
    timeline=timeline(7000, 7200),
)
TOTALS: dict[str, Any] = {
    "cleaned": 7000,
    "rejected": 200,
    "psnr": 31.274,
    "ssim": 0.93125,
    "linf": 0.1,
    "unchanged": 70,
    "reasons": {"not an image": 50, "cut off after N bytes": 149, "NxN pixels are too many": 1},
}


def parse(run: dict[str, Any], pictures: list[dict[str, Any]] | None = None, **totals: Any) -> Parsed:
    return Parsed(cleaning_page(run, Totals(**(TOTALS | totals)), pictures or []))


def plain(text: str) -> str:
    return " ".join(text.split())


def test_headline_accounts_for_every_input() -> None:
    text = plain(parse(run_of(ONE)).text)
    assert "7,000 images cleaned, 200 rejected, in 2 h 0 min, at 1.25 images/s" in text
    assert "All 7,200 inputs are accounted for" in text
    assert "s3://bucket/photos, cleaned by weights/cru_net" in text
    assert "2024-05-01 22:00 to 2024-05-02 00:00 UTC" in text
    assert "2024-05-01 10:00 to 10:01 UTC" in plain(parse(run_of(attempt("01T10:00:00", "01T10:01:00"))).text)
    assert "Only the first" not in text
    assert "Only the first 100 files" in plain(parse(run_of(ONE, limit=100)).text)


@pytest.mark.parametrize(
    ("totals", "title"),
    [
        ({"cleaned": 1, "rejected": 0}, "1 image cleaned, none rejected"),
        ({"cleaned": 0, "rejected": 12}, "0 images cleaned, 12 rejected"),
        ({"cleaned": 0, "rejected": 0}, "There were no images to clean"),
    ],
)
def test_headline_without_a_record(totals: dict[str, int], title: str) -> None:
    assert title in plain(Parsed(cleaning_page(run_of(), Totals(**totals), [])).text).partition("Throughput")[0]


def test_key_figures() -> None:
    page = parse(run_of(ONE))
    figures = [figure.replace("\u00a0", " ") for figure in page.key_figures]
    assert figures == ["7,000", "200", "70", "31.27 dB", "0.9313", "0.1000", "48.2 GB", "15,000"]
    text = plain(page.text)
    for about in ("97.22% of all", "2.78% of all", "1.00% of the cleaned", "25.5 levels in 255", "5 kB written"):
        assert about in text
    assert "120 retries among them" in text


def test_detected_stands_only_where_there_was_a_vote() -> None:
    given = run_of(classifier="weights/mnist/a_net")
    assert "29" in parse(given, detected=29).key_figures
    assert len(parse(given, detected=None).key_figures) == len(parse(given, detected=29).key_figures) - 1


def test_relabelled_stands_only_where_a_classifier_was_given() -> None:
    given = run_of(ONE, classifier="my_models:build")
    assert "Relabelled" not in parse(run_of(ONE)).text
    assert "17" in parse(given, relabelled=17).key_figures
    page = parse(given, relabelled=None)
    assert "–" in page.key_figures
    assert "no image had the shape that my_models:build takes" in plain(page.text)


def test_counts_of_attempts_are_added_and_warnings_stand_once() -> None:
    first = attempt("01T10:00:00", "01T10:01:00", requests=10, retries=1, warnings=["odd domain", "left out: x"])
    page = parse(run_of(first, attempt("01T11:00:00", "01T11:01:00", requests=5, retries=2, warnings=["odd domain"])))
    assert "15" in page.key_figures
    assert "3 retries among them" in plain(page.text)
    assert "2 warnings" in plain(page.text)
    assert page.text.count("odd domain") == 1
    assert {"class": "warning", "role": "note"} not in parse(run_of(ONE)).all("div")


def test_throughput_keeps_every_image() -> None:
    pause = attempt("02T01:00:00", None)
    last = attempt("02T03:00:00", "02T03:30:00", **{"in": 900, "images_per_second": 0.5}, timeline=timeline(1700, 900))
    speed = throughput.read(run_of(ONE, pause, last))
    first, gap, second = speed.spans
    for span, images in ((first, 7200), (second, 900)):
        assert sum(span.rates) * span.seconds / len(span.rates) == pytest.approx(images)
    assert len(first.rates) > 50
    assert first.rates[10] == pytest.approx(7200 / 7000, rel=0.02)
    assert first.rates[-1] < first.rates[10], "the time after the last image counts"
    assert (gap.seconds, gap.cut_off, gap.rates) == (3 * 3600, 1, ())
    assert (speed.seconds, speed.attempts, speed.cut_off) == (9000, 3, 1)
    assert speed.rate == pytest.approx(8100 / (7200 / 1.25 + 900 / 0.5))


def test_chart_shows_the_clock_and_the_pauses() -> None:
    again = attempt("02T03:00:00", "02T03:30:00", **{"in": 900}, timeline=timeline(1700, 900))
    page = parse(run_of(ONE, attempt("02T01:00:00", None), again))
    assert len(page.all("svg")) == 1
    for text in (
        "22:00",
        "22:20",
        "03:00",
        "3 h 0 min, 1 cut off",
        "2024-05-01",
        "05-02",
        "images/s",
        "mean",
    ):
        assert text in page.text, text
    text = plain(page.text)
    assert "1 attempt was cut off and left no record" in text
    assert "200 rejected, at" in text, "how long the cleaning took is not known"
    assert "cut off" not in parse(run_of(ONE), reasons={"not an image": 200}).text.partition("Attempts:")[0]


@pytest.mark.parametrize("counts", [{}, {"timeline": []}, {"in": 0, "timeline": [[5.0, 0]]}])
def test_without_a_timeline_there_is_no_chart(counts: dict[str, Any]) -> None:
    page = parse(run_of(attempt("01T10:00:00", "01T10:01:00", **counts)))
    assert page.all("svg") == []
    assert "None was recorded" in page.text


@pytest.mark.parametrize(
    "run",
    [
        {"identity": {}, "attempts": []},
        run_of(attempt("01T10:00:00", "01T10:00:00", **{"in": 3}, timeline=[[0.0, 1], [0.0, 3]])),
        run_of(attempt("01T10:00:00", "01T10:00:00", **{"in": 3}, timeline=[[0.4, 3]])),
        run_of(attempt("01T10:00:00", "01T09:00:00", timeline=[[-1.2, 0], [3.0, 8], [9.0, 9]])),
        run_of(
            *(attempt(f"{day:02d}T03:00:00", f"{day:02d}T03:20:00", timeline=timeline(900, 50)) for day in range(1, 31))
        ),
        run_of(*(attempt("01T10:00:00", "01T11:00:00", timeline=timeline(3000, 50)) for _ in range(2))),
    ],
    ids=["nothing", "no time", "an instant", "clocks apart", "every night", "at once"],
)
def test_odd_runs_do_not_stop_the_report(run: dict[str, Any]) -> None:
    page = parse(run)
    assert "7,000" in page.key_figures
    assert "nan" not in page.text


def test_rejects_by_reason() -> None:
    page = parse(run_of(ONE))
    (table,) = [table for table in page.tables if table["attributes"].get("id") == "reasons"]
    assert table["rows"][1:] == [
        ["cut off after N bytes", "149", "74.50%", "2.07%"],
        ["not an image", "50", "25.00%", "0.69%"],
        ["NxN pixels are too many", "1", "0.50%", "0.01%"],
    ]
    assert "No image was rejected" in parse(run_of(ONE), rejected=0, reasons={}).text


def test_many_reasons_are_added_up() -> None:
    reasons = {f"reason {letter}": 300 - number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyzABCD")}
    page = parse(run_of(ONE), rejected=sum(reasons.values()), reasons=reasons)
    (table,) = [table for table in page.tables if table["attributes"].get("id") == "reasons"]
    assert len(table["rows"]) == 1 + REASONS_SHOWN + 1
    assert table["rows"][-1][0] == "5 other reasons"
    assert sum(int(row[1].replace(",", "")) for row in table["rows"][1:]) == sum(reasons.values())


def test_most_changed_images_are_paired_with_their_pictures() -> None:
    rows = [
        changed("cats/a.png", psnr=14.5, side=4000, pred_cleaned=5, notes=["16-bit scaled to 8", "grey"]),
        changed("dot.png", side=1, pred_input=None, pred_cleaned=None),
        changed("lost.png"),
        changed("same.png", psnr=100.0, linf=0.0),
    ]
    pictures = [picture("other.png"), picture("dot.png", side=1), picture("cats/a.png", side=64)]
    page = parse(run_of(ONE), pictures, most_changed=rows)
    images = page.all("img")
    assert [image["alt"] for image in images] == [
        "Before: cats/a.png",
        "After: cats/a.png",
        "Before: dot.png",
        "After: dot.png",
    ]
    assert [image.get("class") for image in images] == ["fine", "fine", None, None]
    assert images[0]["src"] != images[1]["src"]
    text = plain(page.text)
    assert "4000 × 4000 PSNR 14.50 dB SSIM 0.8123 L∞ 31/255 label 3 → 5" in text
    assert "16-bit scaled to 8; grey" in text
    assert "1 × 1 PSNR 20.00 dB SSIM – L∞ 31/255 no picture was kept" in text
    assert text.count("no picture was kept") == 2
    assert "same.png" not in text
    assert "label –" not in text


def test_nothing_changed_and_nothing_cleaned() -> None:
    rows = [changed("same.png", psnr=100.0, linf=0.0)]
    assert "Every image came out as it went in" in parse(run_of(ONE), most_changed=rows).text
    assert "No image was cleaned" in parse(run_of(ONE), cleaned=0, psnr=None, ssim=None, linf=None, unchanged=0).text


def test_hostile_names_are_text() -> None:
    keys = [HOSTILE, LONG, RTL, "a\u202egpj.exe", "line\nbreak", "\udcff.png", f'"onerror=alert(1) {HOSTILE}']
    run = run_of({"id": HOSTILE, "versions": {HOSTILE: HOSTILE}, "counts": {"warnings": [HOSTILE, "\u202e"]}})
    run["identity"] |= dict.fromkeys(("input", "purifier", "classifier", "shards", HOSTILE), HOSTILE)
    rows = [changed(key, notes=[HOSTILE]) for key in keys]
    page = parse(run, [picture(key) for key in keys], most_changed=rows, reasons={HOSTILE: 200}, relabelled=None)
    assert page.all("script") == []
    assert all("onerror" not in image for image in page.all("img"))
    assert page.text.count(HOSTILE) > 20
    for text in (LONG, RTL, "a\\u202egpj.exe", "line\\nbreak", "\\udcff.png"):
        assert text in page.text, text
    assert "\u202e" not in page.text
    page.text.encode()


def test_credentials_are_never_shown() -> None:
    signed = "https://host/x.png?sig=s3cr3t-a&more=s3cr3t-b"
    run = run_of(
        ONE | {"config": {"token": "s3cr3t-c"}}, input="s3://user:s3cr3t-d@bucket/x", storage={"key": "s3cr3t-e"}
    )
    run["attempts"][0] = run["attempts"][0] | {"counts": {"warnings": [f"odd: {signed}"]}}
    page = cleaning_page(
        run, Totals(cleaned=1, rejected=1, reasons={signed: 1}, most_changed=[changed(signed)]), [picture(signed)]
    )
    assert "s3cr3t" not in page
    assert "s3://…@bucket/x" in page
    assert "https://host/x.png?…" in page


def test_page_is_whole_and_asks_nothing_of_the_network() -> None:
    page = parse(run_of(ONE), [picture("a.png")], most_changed=[changed("a.png")])
    assert all(attributes.get("scope") for attributes in page.all("th"))
    ids = [str(attributes["id"]) for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = [attributes.get("aria-labelledby") for _, attributes in page.tags if attributes.get("aria-labelledby")]
    linked = [str(attributes["href"])[1:] for attributes in page.all("a")]
    drawn = [str(attributes["xlink:href"])[1:] for attributes in page.all("use")]
    assert {*used, *linked, *drawn} <= set(ids)
    assert page.all("script") == []
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)


def test_how_it_was_run_and_where_things_are() -> None:
    page = parse(run_of(ONE, shards="webdataset"))
    shown = [row for table in page.tables for row in table["rows"]]
    times = ["2024-05-01T22:00:00+00:00", "2024-05-02T00:00:00+00:00", "2 h 0 min"]
    assert ["22", *times, "7,200", "7,000", "200", "1.25", "15,000", "120"] in shown
    assert "in WebDataset tars" in plain(page.text)
    for text in ("images/", "manifest/", "rejects/", "plan/", "3.11.2", '"actors": 8', '"purifier_sha256": "ab"'):
        assert text in page.text, text


def test_report_is_written_from_the_output_folder() -> None:
    output = "memory://cleaning-report-test"
    storage.write_json(storage.join(output, "run.json"), run_of(ONE))
    totals, pictures = Totals(**TOTALS, most_changed=[changed("a.png")]), [picture("a.png")]
    write_cleaning_report(output, totals, pictures)
    page = storage.read_bytes(storage.join(output, "report.html")).decode()
    assert page == cleaning_page(run_of(ONE), totals, pictures)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        write_cleaning_report(str(tmp_path), Totals(), [])


@pytest.mark.parametrize(
    ("count", "whole", "text"),
    [(0, 9, "0.00%"), (1, 1_000_000, "< 0.01%"), (999_999, 1_000_000, "> 99.99%"), (9, 9, "100.00%"), (0, 0, "")],
)
def test_a_share_is_never_rounded_to_nothing_or_all(count: int, whole: int, text: str) -> None:
    assert formats.share(count, whole) == text


def test_sizes_have_three_digits() -> None:
    sizes = [formats.size(count).replace("\u00a0", " ") for count in (0, 999, 999_600, 48_211_000_000, 2.5e15)]
    assert sizes == ["0 B", "999 B", "1 MB", "48.2 GB", "2,500 TB"]
    assert formats.size(None) == "–"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_page_in_a_browser(tab: Tab, tmp_path: Path, width: int, dark: bool) -> None:
    keys = {"dot.png": 1, LONG: 28, RTL: 256, HOSTILE: 28}
    storage.write_json(str(tmp_path / "run.json"), run_of(ONE, input=f"s3://bucket/{LONG}"))
    totals = Totals(**TOTALS, most_changed=[changed(key, side=side, notes=[LONG]) for key, side in keys.items()])
    write_cleaning_report(str(tmp_path), totals, [picture(key, side=side) for key, side in keys.items()])
    url = (tmp_path / "report.html").as_uri()
    tab.requested.clear()
    tab.complaints.clear()
    tab.open(url, width=width, dark=dark)

    assert tab.evaluate("document.images.length") == 8
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert tab.evaluate("[...document.images].every(image => image.clientWidth > 100)"), "the dot is scaled up"
    assert tab.evaluate("getComputedStyle(document.images[0]).imageRendering") == "pixelated"
    assert tab.evaluate("document.querySelector('#throughput svg').getBBox().width") > 300
    for _ in range(2):  # folded and unfolded
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, "the page itself scrolls sideways"
        tab.evaluate("document.querySelectorAll('details').forEach(folded => folded.open = true)")
    assert [address for address in tab.requested if not address.startswith("data:")] == [url]
    assert tab.complaints == []
