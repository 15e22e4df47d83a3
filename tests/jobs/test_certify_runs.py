"""Certificates of a dataset: whole, the same however they are made, and told."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

import raypurify
from raypurify import storage
from raypurify.evaluation import certification
from raypurify.evaluation.certification import CertificationConfig
from raypurify.jobs import certify as job
from raypurify.jobs.certify import certify
from raypurify.jobs.resources import ActorPool
from raypurify.runs import schema
from raypurify.runs.status import status_of

LOCAL = ActorPool(actors=1, local=True)


@pytest.fixture
def config() -> CertificationConfig:
    return CertificationConfig(
        data="digits",
        every=10,
        classifiers=("small_networks:linear",),
        draws=300,
        guesses=20,
        sigmas=(0.1,),
        radii=(0.0, 0.1),
        attack_images=0,
    )


def certificates(output: Path | str) -> list[dict[str, Any]]:
    urls = storage.list_files(f"{output}/certificates", ".parquet")
    return sorted(
        storage.read_tables(urls, schema.CERTIFICATES).to_pylist(), key=lambda row: (row["id"], row["radius"])
    )


def test_certificates_are_whole_and_do_not_depend_on_the_batch(
    config: CertificationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = certify(config, LOCAL, str(tmp_path / "one"))
    rows = certificates(tmp_path / "one")
    assert summary.schema == schema.CERTIFIED
    assert [row["radius"] for row in summary.to_pylist()] == [0.0, 0.1]
    assert {row["n"] for row in summary.to_pylist()} == {len(rows)} == {30}
    assert len({row["id"] for row in rows}) == 30
    for row in summary.to_pylist():
        right = [one["right"] and one["radius"] >= row["radius"] for one in rows]
        assert row["certified"] == pytest.approx(np.mean(right))
        assert row["certified_low"] <= row["certified"] <= row["certified_high"]
    monkeypatch.setattr(job, "PART", 100)
    certify(config, dataclasses.replace(LOCAL, batch=40), str(tmp_path / "other"))
    assert certificates(tmp_path / "other") == rows
    assert len(storage.list_files(str(tmp_path / "other/votes"), ".parquet")) == 2 * 4


def test_a_run_that_was_cut_off_draws_what_is_missing(config: CertificationConfig, tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    certify(config, LOCAL, output)
    rows = certificates(output)
    urls = storage.list_files(f"{output}/votes", ".parquet")
    storage.remove(urls[0])
    storage.remove(f"{output}/{storage.SUCCESS}")
    kept = {url: Path(url).stat().st_mtime_ns for url in urls[1:]}
    assert status_of(output).state == "interrupted"
    certify(config, LOCAL, output)
    assert certificates(output) == rows
    assert {url: Path(url).stat().st_mtime_ns for url in kept} == kept
    assert status_of(output).job == "certification"
    assert status_of(output).state == "finished"


def test_an_output_holds_the_cells_of_several_commands(config: CertificationConfig, tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    certify(config, LOCAL, output)
    more = certify(dataclasses.replace(config, sigmas=(0.1, 0.4)), LOCAL, output)
    assert [row["sigma"] for row in more.to_pylist()] == [0.1, 0.1, 0.4, 0.4]
    (units,) = status_of(output).extent.parts
    assert units.done == units.total == 2 * 2 * 2, "units, parts of the draws, and the cells of the last command"
    certify(dataclasses.replace(config, sigmas=(0.4,), radii=(0.0,)), LOCAL, output)
    found = pq.read_table(f"{output}/summary.parquet").to_pylist()
    assert [(row["sigma"], row["radius"]) for row in found] == [(0.1, 0.0), (0.1, 0.1), (0.4, 0.0)]
    page = Path(f"{output}/report.html").read_text()
    assert "σ = 0.4" in page
    assert "r = 0" in page
    assert "certified at r = 0" in raypurify.show(output).html
    (units,) = status_of(output).extent.parts
    assert units.done == units.total == 2 * 2
    with pytest.raises(ValueError, match="draws"):
        certify(dataclasses.replace(config, draws=400), LOCAL, output)


def test_certificates_of_earlier_weights_are_told_no_more(
    config: CertificationConfig, small_classifier: str, tmp_path: Path
) -> None:
    folder, output = tmp_path / "network", str(tmp_path / "run")
    shutil.copytree(small_classifier, folder)
    config = dataclasses.replace(config, classifiers=(str(folder),), every=30)
    certify(config, LOCAL, output)
    weights = load_file(folder / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, folder / "model.safetensors")
    (hash_of_it,) = set(certify(config, LOCAL, output)["cell"].to_pylist())
    told = pq.read_table(f"{output}/summary.parquet")["cell"].to_pylist()
    assert told == [hash_of_it] * 2
    assert len({path.name for path in Path(output, "certificates").iterdir()}) == 2


@pytest.mark.parametrize("procedure", ["fixed", "sequential"])
def test_a_cell_that_was_cut_off_is_finished_after_another_one(
    procedure: Any, config: CertificationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path / "run")
    config = dataclasses.replace(config, procedure=procedure)
    other = dataclasses.replace(config, sigmas=(0.4,))
    with monkeypatch.context() as patch:
        patch.setattr(job, "_add_up", lambda *arguments: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OSError, match="no space left"):
            certify(other, LOCAL, output)
    certify(config, LOCAL, output)
    assert certify(other, LOCAL, output)["n"].to_pylist() == [30, 30]
    assert {row["sigma"] for row in pq.read_table(f"{output}/summary.parquet").to_pylist()} == {0.1, 0.4}


def test_certified_images_withstand_an_attack_within_their_radii(
    config: CertificationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path / "run")
    config = dataclasses.replace(config, draws=500, alpha=1e-4, radii=(0.0, 0.1, 9.0))
    none = certify(config, LOCAL, output).to_pylist()
    assert [(row["attacked"], row["drawn"], row["empirical"]) for row in none] == [(0, 0, None)] * 3
    more = dataclasses.replace(config, attack_images=30)
    rows = certify(more, LOCAL, output).to_pylist()
    (url,) = storage.list_files(f"{output}/attacked", ".parquet")
    found = storage.read_table(url).to_pylist()
    within = [one for one in found if one["at"] <= one["radius"]]
    beyond = [one for one in found if one["at"] > one["radius"]]
    assert (rows[0]["attacked"], rows[0]["attacked_changed"], rows[0]["attacked_wrong"]) == (len(within), 0, 0)
    assert 0 < len(within) <= rows[0]["drawn"] == 30
    assert all(0.5 * one["radius"] < one["l2"] <= one["at"] + 1e-5 for one in within)
    assert all(one["at"] == 0.99 * one["radius"] for one in within)
    lost = {one["id"] for one in beyond if one["answer"] != one["guess"]}
    assert lost == {one["id"] for one in within}, "no answer stays at 9"
    assert [row["empirical"] for row in rows] == sorted((row["empirical"] for row in rows), reverse=True)
    assert rows[0]["empirical"] == pytest.approx(len(within) / 30)
    assert rows[2]["empirical"] == 0
    changed = dataclasses.replace(more, radii=(0.0, 0.1, 5.0, 9.0))
    assert [row["radius"] for row in certify(changed, LOCAL, output).to_pylist()] == [0.0, 0.1, 5.0, 9.0]
    assert {one["at"] for one in storage.read_table(url).to_pylist()} > {5.0}, "attacked there, too"


def test_a_certificate_that_an_attack_proves_wrong_fails_the_run(
    config: CertificationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, draws=500, alpha=1e-4, attack_images=30)
    monkeypatch.setattr(certification, "bound_of", lambda counts, draws, alpha: np.full(len(counts), 1 - 1e-12))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"an attack proved \d certificates of identity, σ = 0.1, wrong"):
            certify(config, LOCAL, str(tmp_path / "broken"))
    assert not (tmp_path / "broken" / storage.SUCCESS).exists()


def test_a_few_images_are_kept_as_they_are_seen(config: CertificationConfig, tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    certify(config, LOCAL, output)
    (url,) = storage.list_files(f"{output}/samples", ".parquet")
    table = storage.read_table(url)
    assert table.schema == schema.NOISY_SAMPLES
    rows = {row["id"]: row for row in certificates(output)}
    assert len(table) == job.SHOWN
    for row in table.to_pylist():
        assert (row["guess"], row["radius"]) == (rows[row["id"]]["guess"], rows[row["id"]]["radius"])
        noise = np.array(row["noisy"]) - np.array(row["clean"])
        assert noise.std() == pytest.approx(0.1, rel=0.1)
        assert row["purified"] == row["noisy"], "the identity"
    page = Path(f"{output}/report.html").read_text()
    assert page.count("Noisy image") == job.SHOWN
    storage.remove(url)
    certify(config, LOCAL, output)
    assert storage.read_table(url) == table


def test_cells_that_could_not_be_told_apart_are_refused(config: CertificationConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sigmas name one twice"):
        dataclasses.replace(config, sigmas=(0.25, 0.25))
    with pytest.raises(ValueError, match="two models are called"):
        certify(dataclasses.replace(config, purifiers=("identity", "identity")), LOCAL, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_decision_takes_fewer_draws_and_agrees(config: CertificationConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, draws=1000, every=30)
    fixed = certify(config, LOCAL, str(tmp_path / "fixed"))
    sequential = dataclasses.replace(config, procedure="sequential", radii=(0.1,))
    found = certify(sequential, LOCAL, str(tmp_path / "sequential"))
    assert found["draws_mean"][0].as_py() < 0.5 * fixed["draws_mean"][0].as_py()
    by_id = {row["id"]: row for row in certificates(tmp_path / "fixed")}
    for row in certificates(tmp_path / "sequential"):
        assert row["guess"] == by_id[row["id"]]["guess"]
        if row["radius"] >= 0.1:
            assert by_id[row["id"]]["radius"] >= 0.1


def test_certify_is_a_function(small_classifier: str, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"data": "digits", "limit": 4, "draws": 100, "guesses": 10, "radii": [0.0]}
    summary = raypurify.certify(classifiers=[small_classifier], output=tmp_path / "run", engine="local", **flags)
    assert isinstance(summary, pa.Table)
    assert summary["n"].to_pylist() == [4]


def test_an_output_of_an_earlier_version_takes_more_cells(config: CertificationConfig, tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    certify(config, LOCAL, output)
    url = f"{output}/summary.parquet"
    storage.write_table(url, storage.read_table(url).drop_columns(["drawn", "empirical"]))
    (samples,) = storage.list_files(f"{output}/samples", ".parquet")
    storage.remove(samples)
    assert "certified at r = 0" in raypurify.show(output).html
    certify(dataclasses.replace(config, sigmas=(0.4,)), LOCAL, output)
    rows = pq.read_table(url).to_pylist()
    assert [(row["sigma"], row["drawn"]) for row in rows] == [(0.1, None)] * 2 + [(0.4, 0)] * 2
