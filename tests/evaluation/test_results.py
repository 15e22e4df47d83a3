from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raypurify import storage
from raypurify.evaluation import results, samples
from raypurify.metrics import Metric
from raypurify.runs import schema

CELL = {
    "cell": "c0ffee",
    "dataset": "digits",
    "setting": "white-box",
    "attack": "fgsm",
    "norm": "linf",
    "eps": 0.3,
    "params": "{}",
    "victim": "a",
    "classifier": "a",
    "purifier": "p",
}


def row(name: str, **changes: object) -> dict[str, object]:
    values: dict[str, object] = dict.fromkeys((field.name for field in schema.SCORES if not field.nullable), 1)
    values.update(dict.fromkeys((n for n in schema.SCORES.names if n.startswith(("psnr", "ssim"))), 0.5))
    return {**values, "id": name, "label": 1, "linf": 0.25, "l2": 1.0, **changes}


def write(output: Path, *units: list[dict[str, object]]) -> None:
    for number, rows in enumerate(units):
        url = storage.join(results.scores_folder(str(output), "c0ffee"), f"{number:06d}.parquet")
        storage.write_table(url, pa.Table.from_pylist(rows, schema.SCORES))


def figures_of(output: Path, **changes: str) -> dict[str, Any]:
    """The cell's row of the summary."""
    urls = storage.list_files(results.scores_folder(str(output), "c0ffee"), ".parquet")
    rows = sum(len(storage.read_table(url)) for url in urls)
    (figures,) = results.write_summary(str(output), [CELL | changes], {"c0ffee"}, rows).to_pylist()
    return dict(figures)


def test_the_figures_of_a_cell(tmp_path: Path) -> None:
    write(
        tmp_path,
        [row("a", pred_adversarial=0, l2=2.0, psnr_purified=20.0), row("b", pred_purified=0, psnr_purified=30.0)],
        [row("c", pred_adversarial=0, l2=4.0, psnr_purified=40.0), row("d", pred_clean=0, l2=9.0, psnr_purified=10.0)],
    )
    summary = results.write_summary(str(tmp_path), [CELL], {"c0ffee"}, 4)
    assert summary.schema == schema.SUMMARY
    (figures,) = summary.to_pylist()
    assert figures["n"] == 4
    assert figures["accuracy_clean"] == 0.75
    assert figures["accuracy_adversarial"] == 0.5
    assert figures["accuracy_purified"] == 0.75
    assert figures["success_rate_eq14"] == 1.0
    assert figures["psnr_purified"] == 25.0
    assert figures["psnr_purified_eq16"] == pytest.approx(25 + 48.1308, abs=1e-4)
    assert figures["l2_median"] == 4.0  # of 2, 4 and, for the attack that failed on b, infinity; d was wrong at first
    assert figures["accuracy_purified_low"] == pytest.approx(0.3006, abs=1e-3)
    assert figures["accuracy_purified_high"] == pytest.approx(0.9544, abs=1e-3)
    assert (figures["masking_n"], figures["masking"], figures["accuracy_multi_step"]) == (0, None, None)
    assert storage.read_table(str(tmp_path / "summary.parquet")).equals(summary)


def test_an_adaptive_attack_is_judged_behind_the_purifier(tmp_path: Path) -> None:
    fooled, held = {"pred_purified": 0}, {"pred_adversarial": 0}
    write(tmp_path, [row("a", l2=2.0, **fooled), row("b", l2=3.0, **fooled), row("c", l2=4.0, **held)])
    assert figures_of(tmp_path, setting="adaptive")["l2_median"] == 3.0  # of 2, 3, infinity
    assert figures_of(tmp_path)["l2_median"] == float("inf")
    wrong_at_first = row("d", l2=1.0, pred_clean_purified=0, **fooled)
    write(tmp_path, [row("a", l2=2.0, **fooled), wrong_at_first])
    assert figures_of(tmp_path, setting="adaptive")["l2_median"] == 2.0


def test_the_masking_check_counts_the_images_that_were_checked(tmp_path: Path) -> None:
    fooled = dict.fromkeys((f"pred_{attack}" for attack in schema.MASKING_ATTACKS), 0)
    checked = {**fooled, "zero_gradient": False, "pred_straight_through": None}
    write(tmp_path, [row("a", **checked), row("b", **{**checked, "pred_multi_step": 1}), row("c")])
    figures = figures_of(tmp_path)
    assert (figures["masking_n"], figures["zero_gradient_share"]) == (2, 0.0)
    assert (figures["accuracy_multi_step"], figures["accuracy_single_step"]) == (0.5, 0.0)
    assert figures["accuracy_straight_through"] is None
    assert figures["masking"] == ["single_step", "random_search"]


def test_zero_gradients_are_counted_where_they_are_known(tmp_path: Path) -> None:
    write(tmp_path, [row("a", zero_gradient=True), row("b", zero_gradient=False)], [row("c")])
    figures = figures_of(tmp_path)
    assert (figures["zero_gradient_share"], figures["masking_n"], figures["masking"]) == (0.5, 0, None)
    write(tmp_path, [row("a"), row("b")], [row("c")])
    assert figures_of(tmp_path)["zero_gradient_share"] is None


def test_what_an_attack_took_at_most(tmp_path: Path) -> None:
    write(tmp_path, [row("a", steps=3, queries=7), row("b", steps=5, queries=11)])
    figures = figures_of(tmp_path)
    assert [figures[name] for name in ("steps_mean", "steps_max", "queries_mean", "queries_max")] == [4.0, 5, 9.0, 11]


def test_unknown_similarities_are_left_out_of_the_mean(tmp_path: Path) -> None:
    write(tmp_path, [row("a", ssim_purified=None), row("b", ssim_purified=0.25)])
    assert figures_of(tmp_path)["ssim_purified"] == 0.25
    write(tmp_path, [row("a", ssim_purified=None)])
    assert figures_of(tmp_path)["ssim_purified"] is None


def test_an_id_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, [row("a")], [row("a")])
    with pytest.raises(ValueError, match="'a' stands for more than one image"):
        figures_of(tmp_path)


def test_a_cell_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="c0ffee has no scores"):
        figures_of(tmp_path)


def test_a_cell_that_lacks_rows_is_an_error_if_it_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path, [row("a"), row("b")])
    with pytest.raises(RuntimeError, match="c0ffee has 2 scores of 3 images"):
        results.write_summary(str(tmp_path), [CELL], {"c0ffee"}, 3)
    cut_off = [{**CELL, "cell": "never"}, CELL]
    assert len(results.write_summary(str(tmp_path), cut_off, set(), 3)) == 0
    assert len(results.write_summary(str(tmp_path), cut_off, {"c0ffee"}, 2)) == 1


def test_samples_are_the_worst_and_some_at_random_whatever_the_units(tmp_path: Path) -> None:
    rows = [row(f"i{n:02d}", psnr_purified=float(n)) for n in range(20)]
    write(tmp_path / "x", rows[:10], rows[10:])
    write(tmp_path / "y", rows[::-1])
    chosen = samples.choose(str(tmp_path / "x"), "c0ffee", seed=3)
    other = samples.choose(str(tmp_path / "y"), "c0ffee", seed=3)
    assert {(s.id, s.kind) for s in chosen} == {(s.id, s.kind) for s in other}
    assert all(s.unit == ("000000" if s.id < "i10" else "000001") for s in chosen)
    assert {"i00", "i01"} <= {s.id for s in chosen}
    assert [s.kind for s in chosen].count("random") == 2


def test_the_worst_samples_are_those_that_stay_wrong(tmp_path: Path) -> None:
    rows = [row(f"i{n:02d}", psnr_purified=float(n), pred_purified=1 if n < 17 else 0) for n in range(20)]
    write(tmp_path, rows[:18], rows[18:])
    chosen = samples.choose(str(tmp_path), "c0ffee", seed=3)
    assert {s.id for s in chosen if s.kind == "worst"} == {"i17", "i18"}


def test_pairs_of_label_and_prediction_are_counted_over_all_units(tmp_path: Path) -> None:
    write(tmp_path, [row("a", pred_adversarial=0), row("b", pred_adversarial=0)], [row("c", label=2), row("d")])
    results.write_summary(str(tmp_path), [CELL], {"c0ffee"}, 4)
    table = storage.read_table(str(tmp_path / "confusion.parquet"))
    assert table.schema == schema.CONFUSION
    found = [(row["kind"], row["label"], row["predicted"], row["n"]) for row in table.to_pylist()]
    assert [pair for pair in found if pair[0] == "adversarial"] == [
        ("adversarial", 1, 0, 2),
        ("adversarial", 1, 1, 1),
        ("adversarial", 2, 1, 1),
    ]
    assert [sum(pair[3] for pair in found if pair[0] == kind) for kind in ("clean", "purified")] == [4, 4]


def test_scores_of_a_version_without_a_column_are_still_read(tmp_path: Path) -> None:
    url = storage.join(results.scores_folder(str(tmp_path), "c0ffee"), "000000.parquet")
    earlier = pa.Table.from_pylist([row("a")], schema.SCORES).drop_columns(["detected_clean"])
    storage.write_table(url, earlier)
    assert figures_of(tmp_path)["false_alarm_rate"] is None
    storage.write_table(url, earlier.drop_columns(["label"]))
    with pytest.raises(KeyError, match="label"):
        figures_of(tmp_path)


def test_the_worst_case_is_of_all_attacks_in_one_ball(tmp_path: Path) -> None:
    wrong = {"pred_purified": 0}
    kinds: dict[str, tuple[dict[str, object], str]] = {
        "fgsm": ({}, "a"),
        "pgd": ({"attack": "pgd"}, "b"),
        "smaller": ({"eps": 0.1}, "c"),
        "adaptive": ({"setting": "adaptive", "victim": "p+a"}, "abc"),
        "other": ({"purifier": "q"}, ""),
        "deepfool": ({"attack": "deepfool", "norm": None, "eps": None}, "abcd"),
    }
    for name, (_, lost) in kinds.items():
        ids = "dcba" if name == "pgd" else "abcd"
        rows = [row(image, **(wrong if image in lost else {})) for image in ids]
        for number, part in enumerate((rows[:3], rows[3:])):
            url = storage.join(results.scores_folder(str(tmp_path), name), f"{number:06d}.parquet")
            storage.write_table(url, pa.Table.from_pylist(part, schema.SCORES))
    cells = [{**CELL, **changes, "cell": name} for name, (changes, _) in kinds.items()]
    summary = results.write_summary(str(tmp_path), cells, set(kinds), 4)
    worst = dict(zip(summary["cell"].to_pylist(), summary["accuracy_worst"].to_pylist(), strict=True))
    assert worst == {"fgsm": 0.5, "pgd": 0.5, "smaller": 0.75, "adaptive": 0.25, "other": 1.0, "deepfool": None}
    assert results.read_summary(str(tmp_path), ["pgd"])["accuracy_worst"].to_pylist() == [0.5]


def test_a_summary_of_a_version_without_worst_cases_is_still_read(tmp_path: Path) -> None:
    write(tmp_path, [row("a")])
    summary = results.write_summary(str(tmp_path), [CELL], {"c0ffee"}, 1)
    storage.write_table(str(tmp_path / "summary.parquet"), summary.drop_columns(["accuracy_worst"]))
    earlier = results.read_summary(str(tmp_path), ["c0ffee"])
    assert earlier.schema == schema.SUMMARY
    assert earlier["accuracy_worst"].to_pylist() == [None]


def test_detection_defends_attacked_images_and_loses_clean_ones(tmp_path: Path) -> None:
    wrong = {"pred_purified": 0}
    rows = [
        row("a", detected=True, detected_clean=False, **wrong),
        row("b", detected=False, detected_clean=True),
        row("c", detected=True, detected_clean=True),
        row("d", detected=False, detected_clean=False, **wrong),
    ]
    write(tmp_path, rows)
    names = ("detection_rate", "false_alarm_rate", "accuracy_purified", "accuracy_with_detection")
    figures = figures_of(tmp_path)
    assert [figures[name] for name in names] == [0.5, 0.5, 0.5, 0.75]
    clean = figures_of(tmp_path, attack="none")
    assert clean["accuracy_with_detection"] == 0.25, "without an attack a detected image is lost"
    write(tmp_path, [row("a")])
    assert [figures_of(tmp_path)[name] for name in names] == [None, None, 1.0, None]


@pytest.mark.parametrize("total", ["mean", "max", "median"])
def test_a_metric_of_the_users_is_one_entry(tmp_path: Path, total: str) -> None:
    mine = Metric(name="mine", measure=lambda a, b: a, total=total, heading="Mine", unit="nats")  # type: ignore[arg-type]
    columns = [name for name in schema.scores((mine,)).names if name not in schema.SCORES.names]
    rows = [row("a", **dict.fromkeys(columns, 2.0), pred_adversarial=0), row("b", **dict.fromkeys(columns, 4.0))]
    url = storage.join(results.scores_folder(str(tmp_path), "c0ffee"), "000000.parquet")
    storage.write_table(url, pa.Table.from_pylist(rows, schema.scores((mine,))))
    results.write_summary(str(tmp_path), [CELL], {"c0ffee"}, 2, (mine,))
    summary = storage.read_table(storage.join(str(tmp_path), "summary.parquet"))
    expected = {
        "mean": {"mine_adversarial": 3.0, "mine_purified": 3.0, "mine_clean_purified": 3.0},
        "max": {"mine_max": 4.0},
        "median": {"mine_median": float("inf")},
    }[total]
    assert summary.column_names == [*schema.SUMMARY.names, *expected]
    assert summary.select(list(expected)).to_pylist() == [expected]
    told = schema.shown(summary.schema)["mine_purified" if total == "mean" else f"mine_{total}"]
    assert (told.heading, told.note) == ("Mine", {"mean": "nats", "max": "largest", "median": "median"}[total])
