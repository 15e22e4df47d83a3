"""Defenses on one bench, in this process, at sizes that mean nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypurify.jobs import tables
from raypurify.jobs.compare_defenses import ALL, ATTACKS, GENERATIVE, Bench, DefensesArguments, main
from raypurify.report import attempts, defenses

SMALL = DefensesArguments(
    data="digits",
    classifiers=("model_d", "model_a"),
    images=192,
    classifier_epochs=2,
    robust_epochs=1,
    epochs=1,
    magnet_epochs=2,
    generator_epochs=1,
    generator_width=2,
    restarts=2,
    steps=4,
    limit=8,
    minimal_limit=3,
    adaptive_limit=4,
    adaptive_minimal_limit=2,
    generative_limit=2,
    cpus_per_worker=1,
    local=True,
)


def changed(**flags: Any) -> DefensesArguments:
    return DefensesArguments(**{**{name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}, **flags})


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"limit": 0}, "limit must be at least 1; got 0"),
        ({"defenses": ()}, "defenses must be at least 1"),
        ({"epsilon": 0.0}, "epsilon must be above 0"),
        ({"classifiers": ("model_d", "model_d")}, "classifiers name one twice"),
    ],
)
def test_sizes_that_cannot_be_are_refused(flags: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        changed(**flags)


def test_an_unknown_classifier_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="classifiers: model_z: expected some of"):
        main(changed(output=str(tmp_path / "run"), classifiers=("model_z",)))
    assert not (tmp_path / "run").exists()


def test_images_are_attacked_once_for_all_that_learn_from_them(tmp_path: Path) -> None:
    bench = Bench(
        arguments=changed(output=str(tmp_path), classifiers=("model_d",), defenses=("cgan_defense", "cru_net"))
    )
    bench.trained("model_d", {"model_d": bench.classifier("model_d")}, {})
    attacks = ["fgsm-epsilon-0.3", "pgd-epsilon-0.3-steps-7", "r_fgsm-epsilon-0.3"]
    attacked = sorted((tmp_path / "attacked/model_d").iterdir())
    assert [folder.name for folder in attacked] == attacks
    runs = [json.loads((folder / "run.json").read_text()) for folder in attacked]
    assert [len(run["attempts"]) for run in runs] == [1, 1, 1]
    for name in ("cgan_defense", "cru_net"):
        told = json.loads((tmp_path / f"training/{name}-model_d/run.json").read_text())
        assert all(f"{folder}/images" in told["identity"]["train_against"] for folder in attacked)
        assert told["attempts"][0]["counts"]["in"] > 0
    for folder, ended in (
        (attacked[0], "2026-01-01T00:07:00"),
        (tmp_path / "training/cru_net-model_d", "2026-01-01T01:00:00"),
    ):
        told = json.loads((folder / "run.json").read_text())
        told["attempts"] = [{"started": "2026-01-01T00:00:00", "ended": ended}]
        (folder / "run.json").write_text(json.dumps(told))
    others = sum(attempts.seconds(run["attempts"][0]) or 0 for run in runs[1:])
    assert bench.costs("identity", "cru_net", "model_d")["training_seconds"] == 7 * 60 + 3600 + others
    assert bench.costs("identity", "no defense", "model_d")["training_seconds"] == 0
    assert bench.runs_of("ddsa", "model_d") == [
        f"{tmp_path}/training/model_d-at",
        f"{tmp_path}/training/ddsa-model_d",
    ], "nothing has attacked the hardened classifier"


def test_some_defenses_of_one_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = changed(output=str(tmp_path), classifiers=("model_d",), defenses=("at", "magnet"))
    main(arguments)
    table = pq.read_table(tmp_path / "tables/defenses.parquet")
    assert table.schema.equals(defenses.DEFENSES)
    rows = table.to_pylist()
    assert {row["defense"] for row in rows} == {"no defense", "at", "magnet"}
    assert {(row["defense"], row["setting"]) for row in rows if row["setting"] == "adaptive"} == {
        ("at", "adaptive"),
        ("magnet", "adaptive"),
    }
    adaptive = {row["attack"]: row for row in rows if row["defense"] == "magnet" and row["setting"] == "adaptive"}
    assert {attack: row["n"] for attack, row in adaptive.items()} == {
        **dict.fromkeys(("fgsm", "r_fgsm", "pgd"), 4),
        **dict.fromkeys(("deepfool", "carlini_wagner", "stadv"), 2),
    }
    magnet = adaptive["pgd"]
    assert magnet["false_alarm_rate"] is not None
    assert magnet["images_per_second"] > 0
    assert magnet["parameters"] == 452
    told = [{**row, "accuracy": 0.5 if row["eps"] else 0.0} for row in rows]
    within = defenses.table([row for row in told if row["eps"]])
    assert defenses.charts(defenses.table(told)) == defenses.charts(within), "attacks without a ball leave nothing"
    before = (tmp_path / "tables/defenses.csv").read_bytes()
    capsys.readouterr()
    main(arguments)
    assert "loss" not in capsys.readouterr().out, "nothing is trained again"
    assert (tmp_path / "tables/defenses.csv").read_bytes() == before
    page = (tmp_path / "report.html").read_text()
    assert "evaluation/model_d-balls/report.html" in page
    main(changed(output=str(tmp_path), classifiers=("model_d",), defenses=("magnet",)))
    cells = [
        (row["defense"], row["setting"], row["attack"])
        for row in pq.read_table(tmp_path / "tables/defenses.parquet").to_pylist()
    ]
    assert len(set(cells)) == len(cells), "without another classifier nothing is evaluated twice"


def test_a_csv_has_lists_of_texts(tmp_path: Path) -> None:
    table = pa.table({"n": [1, 2, 3], "found": [["a", "b"], [], None], "pixels": [[1], [2], [3]]})
    tables.write(str(tmp_path / "table"), table)
    assert (tmp_path / "table.csv").read_text() == '"n","found"\n1,"a; b"\n2,"nothing"\n3,\n'
    assert pq.read_table(tmp_path / "table.parquet").equals(table)


@pytest.mark.slow
def test_all_defenses_of_two_classifiers(tmp_path: Path) -> None:
    main(changed(output=str(tmp_path)))
    rows = pq.read_table(tmp_path / "tables/defenses.parquet").to_pylist()
    cells = {(row["classifier"], row["defense"], row["setting"], row["attack"]) for row in rows}
    assert len(cells) == len(rows)
    for classifier in ("model_d", "model_a"):
        for defense in ALL:
            own = [cell for cell in cells if cell[:2] == (classifier, defense)]
            through = ATTACKS[:3] if defense in GENERATIVE else ATTACKS
            assert {(setting, attack) for _, _, setting, attack in own} == {
                *((setting, attack) for setting in ("white-box", "transfer") for attack in ATTACKS),
                *(("adaptive", attack) for attack in through),
            }
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"cost-digits-{name}.svg" for name in ("model_d", "model_a")
    }
    trained = {path.name for path in (tmp_path / "training").iterdir()}
    assert "magnet" in trained, "one for all classifiers"
    assert {"ddsa-model_a", "ddsa-model_d", "model_a-at", "model_d-at"} <= trained
