"""An evaluation does what is missing, whatever was there before, and accounts for every image; in this process."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from grids import assert_equal, grid
from grids import damaged as damaged
from grids import expected as expected
from PIL import Image

from raypurify import storage
from raypurify.data import open_source, read_rows
from raypurify.evaluation import results, samples
from raypurify.evaluation.generation import GenerationConfig
from raypurify.evaluation.grid import EvaluationConfig, build_grid
from raypurify.evaluation.units import units_of
from raypurify.jobs.attack import attack
from raypurify.jobs.evaluate import Evaluation, evaluate, spread, write_samples
from raypurify.jobs.resources import ActorPool
from raypurify.jobs.work import UnitWorker, undone
from raypurify.runs import FailedError, StoppedError, lease, schema

ONE = ActorPool(actors=1, cpus_per_actor=1, batch=64, local=True)


def test_what_is_missing_is_computed_and_nothing_else(
    small_classifier: str, small_purifier: str, expected: dict[str, pa.Table], tmp_path: Path
) -> None:
    output = str(tmp_path / "run")
    config = grid(small_classifier, small_purifier)
    evaluate(config, ONE, output)
    files = {Path(url): Path(url).stat().st_mtime_ns for url in storage.list_files(f"{output}/scores", ".parquet")}
    assert len(files) == 16 * len(expected)
    lost = sorted(files)[1]
    lost.unlink()
    evaluate(config, ONE, output)  # finished runs are checked, not trusted
    assert_equal(output, expected)
    assert {path for path, time in files.items() if path.stat().st_mtime_ns != time} == {lost}

    more = dataclasses.replace(config, purifiers=(*config.purifiers, "median_filter"), settings=("white-box",))
    summary = evaluate(more, ONE, output)
    assert len(summary) == 6
    assert len(storage.read_table(f"{output}/summary.parquet")) == len(expected) + 2
    assert {path for path, time in files.items() if path.stat().st_mtime_ns != time} == {lost}
    runs = storage.read_json(f"{output}/run.json")
    assert [attempt["counts"]["in"] for attempt in runs["attempts"]] == [254, 16, 254]


@pytest.mark.parametrize(("unit", "files"), [(None, 4), (16, 13), (500, 1)])
def test_a_run_that_was_begun_keeps_its_units_whatever_its_pool(
    unit: int | None, files: int, small_classifier: str, tmp_path: Path
) -> None:
    """Also one of an older version, whose units had 500 rows, and one that was begun without an attack that couples a
    batch: what that attack makes of an image follows from the images beside it."""
    output, first = tmp_path / "run", tmp_path / "first"
    attacks = ("torchattacks.PGD,eps=0.1,steps=1", "fgsm,epsilon=0.1")
    config = EvaluationConfig(data="digits", limit=200, classifiers=(small_classifier,), attacks=attacks)
    if unit is not None:
        evaluate(dataclasses.replace(config, attacks=("none",)), ONE, str(first))
        identity = storage.read_json(f"{first}/run.json")["identity"]
        assert identity["unit"] == 16
        storage.write_json(f"{output}/run.json", {"identity": {**identity, "unit": unit}, "attempts": []})
    evaluate(config, ONE, str(output))
    made = {path: path.read_bytes() for path in output.glob("scores/*/*.parquet")}
    assert len(made) == files * len(attacks)
    for path in sorted(made)[::2]:
        path.unlink()
    evaluate(config, dataclasses.replace(ONE, max_actors=4), str(output))
    assert {path: path.read_bytes() for path in output.glob("scores/*/*.parquet")} == made


def test_a_cell_with_another_check_takes_the_place_of_the_old_one(small_classifier: str, tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    config = EvaluationConfig(
        data="digits", limit=40, classifiers=(small_classifier,), attacks=("fgsm",), settings=("adaptive",)
    )
    for images in (0, 40, 0):
        summary = evaluate(dataclasses.replace(config, masking_images=images), ONE, output)
        assert summary["masking_n"].to_pylist() == [images]
        assert storage.read_table(f"{output}/summary.parquet").equals(summary)
    counts = [attempt["counts"]["in"] for attempt in storage.read_json(f"{output}/run.json")["attempts"]]
    assert counts == [40, 40, 0], "what was computed before is there still"


def test_another_dataset_on_the_same_output_is_refused(
    small_classifier: str, small_purifier: str, tmp_path: Path
) -> None:
    output = str(tmp_path / "run")
    config = grid(small_classifier, small_purifier, limit=20, settings=("white-box",))
    evaluate(config, ONE, output)
    with pytest.raises(ValueError, match="limit = 20; this one has limit = 30"):
        evaluate(dataclasses.replace(config, limit=30), ONE, output)


def test_an_image_that_cannot_be_read_is_a_row_of_rejects(small_classifier: str, damaged: str, tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    known = shutil.copytree(small_classifier, tmp_path / "known")
    content = storage.read_json(str(known / "config.json"))
    content["trained_on"] = dataclasses.asdict(open_source(damaged, split="test").origin)
    storage.write_json(str(known / "config.json"), content)
    config = EvaluationConfig(data=damaged, classifiers=(str(known),), attacks=("fgsm,epsilon=0.1",))
    summary = evaluate(config, ONE, output)
    assert summary["n"].to_pylist() == [8]
    rejects = storage.read_tables(storage.list_files(f"{output}/rejects"), schema.REJECTS).to_pylist()
    assert [(row["id"], row["stage"]) for row in rejects] == [(f"test-00000.parquet#{row}", "decode") for row in (0, 3)]
    counts = storage.read_json(f"{output}/run.json")["attempts"][0]["counts"]
    assert (counts["in"], counts["out"], counts["rejected"]) == (10, 8, 2)
    warning = "known was trained on images that it is evaluated on"
    assert [text.partition(";")[0] for text in counts["warnings"]] == [warning]
    assert warning in Path(output, "report.html").read_text()
    with pytest.raises(StoppedError, match=r"2 of 10 images are rejected, more than --max-rejects=0\.1 allows"):
        evaluate(config, ONE, f"{output}2", max_rejects=0.1)


def test_samples_are_the_images_that_were_scored(small_classifier: str, small_purifier: str, tmp_path: Path) -> None:
    """Also those of an attack that draws for a whole batch at once."""
    attacks = ("torchattacks.PGD,eps=0.1,steps=1", "r_fgsm,epsilon=0.1")
    config = grid(small_classifier, small_purifier, limit=40, attacks=attacks, settings=("white-box",))
    source = open_source(config.data, split=config.split, limit=config.limit)
    layout = build_grid(config, source.name, source.rows, batch=16)
    output, pool = str(tmp_path), dataclasses.replace(ONE, batch=16)
    work, (unit,) = Evaluation(grid=layout, output=output), units_of(source, 40)
    with lease.hold(output, "this one"):
        make = work.start(pool, lease.Watch(output, "this one"))
        make(unit, unit.read(), set(work.marks)).publish()
        chosen = {cell.hash: samples.choose(output, cell.hash, 0) for cell in layout.cells}
        write_samples(work, pool, "this one", [unit], chosen)
    for cell in layout.cells:
        written = storage.read_table(f"{tmp_path}/samples/{cell.hash}.parquet").to_pylist()
        assert {(row["id"], row["kind"]) for row in written} == {(s.id, s.kind) for s in chosen[cell.hash]}
        scores = {row["id"]: row for row in results.read_scores(str(tmp_path), cell.hash, ["id", "l2"]).to_pylist()}
        for row in written:
            l2 = np.linalg.norm(np.array(row["adversarial"]) - np.array(row["clean"]))
            assert l2 == pytest.approx(scores[row["id"]]["l2"], rel=1e-4)


def test_the_loss_curve_is_found_beside_a_checkpoint_on_s3(s3: str, small_purifier: str, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        storage.write_bytes(f"{s3}/curves/run/model/{name}", Path(small_purifier, name).read_bytes())
    curve = pa.table([[1], [0], [0.5], [0.1], [9.0]], schema=schema.STEPS)
    storage.write_table(f"{s3}/curves/run/metrics.parquet", curve)
    config = EvaluationConfig(data="digits", classifiers=("x",), purifiers=(f"{s3}/curves/run/model", "identity"))
    assert results.curves(config) == {"run": curve}


def test_a_loss_curve_that_cannot_be_read_fails_no_evaluation(
    small_purifier: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(small_purifier, tmp_path / "model")
    (tmp_path / "metrics.parquet").write_bytes(b"of another kind")
    config = EvaluationConfig(data="digits", classifiers=("x",), purifiers=(f"{tmp_path}/model",))
    assert results.curves(config) == {}
    assert "the report lacks the loss curve" in capsys.readouterr().out


def test_a_mended_image_is_taken_in_by_every_cell(small_classifier: str, tmp_path: Path) -> None:
    data, there, attacked = (str(tmp_path / name) for name in ("data", "run", "attacked"))
    rng = np.random.default_rng(0)
    for label in range(10):
        Path(data, "test", str(label)).mkdir(parents=True)
    for number in range(6):
        victim = Path(data, "test", str(number % 2), f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(victim)
    good = victim.read_bytes()
    assert read_rows(open_source(data, split="test").shards[0], 0, 1).ids != ["test/1/5.png"], "the first is tried"
    config = EvaluationConfig(data=data, classifiers=(small_classifier,), attacks=("none",))
    added = dataclasses.replace(config, attacks=("none", "fgsm,epsilon=0.1"))
    generation = GenerationConfig(input=data, attack="none", classifier=small_classifier)
    for content, n, asked in ((b"x" * len(good), 5, config), (good, 6, added)):
        victim.write_bytes(content)
        os.utime(victim, (1, 1))
        summary = evaluate(asked, ONE, there)
        assert summary["n"].to_pylist() == [n] * len(asked.attacks)
        Path(attacked, "images", "test-000000.parquet").unlink(missing_ok=True)
        Path(attacked, "_SUCCESS").unlink(missing_ok=True)
        figures = attack(generation, ONE, attacked)
        assert (figures["n"], figures["rejected"]) == (n, 6 - n)


def test_parts_of_a_unit_leave_images_that_have_changed_to_one_actor(
    small_classifier: str, damaged: str, tmp_path: Path
) -> None:
    config = EvaluationConfig(data=damaged, classifiers=(small_classifier,), attacks=("none", "fgsm,epsilon=0.1"))
    source, output = open_source(damaged, split="test"), str(tmp_path / "run")
    work = Evaluation(grid=build_grid(config, source.name, source.rows), output=output)
    planned = units_of(source, 16)
    (whole,) = undone(work, planned)
    parts = spread([whole], work.grid, actors=5)
    assert [len(cells) for _, cells in parts] == [1, 1]
    assert spread([whole] * 5, work.grid, actors=5) == [whole] * 5
    with lease.hold(output, "this one"):
        worker = UnitWorker(work, ONE, "this one")
        for part in parts:
            assert worker.do(*part)["in"] == 0
        assert undone(work, planned) == [whole]
        row = worker.do(*whole)
        assert (row["in"], row["out"], row["rejected"]) == (10, 8, 2)
        made = {url: storage.read_bytes(url) for url in storage.list_files(f"{output}/scores")}
        storage.remove(f"{output}/scores")
        rows = [worker.do(*part) for part in parts]
    assert [sum(row[name] for row in rows) for name in ("in", "out", "rejected")] == [10, 8, 2]
    assert {url: storage.read_bytes(url) for url in storage.list_files(f"{output}/scores")} == made
    assert undone(work, planned) == []


def test_large_images_go_in_smaller_batches(
    small_classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "threes.py").write_text(
        "import torch\n"
        "class Threes(torch.nn.Module):\n"
        '    """The identity, of three images at most."""\n'
        "    def forward(self, x):\n"
        "        assert len(x) <= 3, len(x)\n"
        "        return x\n"
    )
    config = EvaluationConfig(
        data="digits", limit=16, classifiers=(small_classifier,), purifiers=("threes:Threes",), attacks=("none",)
    )
    three = dataclasses.replace(ONE, batch_pixels=3 * 28 * 28 + 1)
    assert three.batch_for((28, 28, 1)) == 3
    assert len(evaluate(config, three, str(tmp_path / "three"))) == 1
    with pytest.raises(FailedError, match="AssertionError: 16"):
        evaluate(config, ONE, str(tmp_path / "all"))
    assert ONE.batch_for((10_000, 10_000, 3)) == 1
    with pytest.raises(ValueError, match="batch_pixels must be at least 1; got 0"):
        dataclasses.replace(ONE, batch_pixels=0)


def test_samples_tell_the_likeliest_classes(small_classifier: str, tmp_path: Path) -> None:
    config = EvaluationConfig(data="digits", limit=30, classifiers=(small_classifier,), attacks=("fgsm",))
    evaluate(config, ONE, str(tmp_path / "run"))
    for row in storage.read_table(storage.list_files(f"{tmp_path}/run/samples")[0]).to_pylist():
        for kind in ("clean", "adversarial", "purified"):
            top = row[f"top_{kind}"]
            assert top[0]["class"] == row[f"pred_{kind}"]
            chances = [answer["probability"] for answer in top]
            assert len(top) == 5
            assert chances == sorted(chances, reverse=True)
            assert 0 < sum(chances) <= 1 + 1e-6
