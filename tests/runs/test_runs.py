import json
from pathlib import Path

import pytest

from raypurify import runs, storage


def attempt(output: str, identity: dict[str, object], *, fail: bool = False) -> None:
    run = runs.open_run(output, identity)
    with run.attempt({"cores": 2}, {"workers": 1}):
        run.counts["in"] = 3
        if fail:
            raise RuntimeError("cut off")
    run.finish()


def test_an_attempt_is_recorded_also_when_it_fails(tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    with pytest.raises(RuntimeError, match="cut off"):
        attempt(output, {"seed": 1}, fail=True)
    assert not runs.open_run(output, {"seed": 1}).finished
    attempt(output, {"seed": 1})
    written = json.loads((tmp_path / "run/run.json").read_text())
    assert written["identity"] == {"seed": 1}
    assert [entry["counts"] for entry in written["attempts"]] == [{"in": 3}, {"in": 3}]
    assert all(entry["ended"] >= entry["started"] for entry in written["attempts"])
    assert written["attempts"][0]["id"] != written["attempts"][1]["id"]
    assert "torch" in written["attempts"][0]["versions"]
    assert runs.open_run(output, {"seed": 1}).finished


def test_another_identity_is_refused_by_the_field_that_differs(tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    attempt(output, {"seed": 1, "data": "mnist"})
    with pytest.raises(ValueError, match="seed = 1; this one has seed = 2"):
        runs.open_run(output, {"seed": 2, "data": "mnist"})
    assert storage.exists(output)


def test_changed_data_are_named_beside_their_hash(tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    attempt(output, {"data": "photos", "dataset": "12ab"})
    runs.open_run(output, {"data": "elsewhere", "dataset": "12ab"})
    with pytest.raises(ValueError, match="'34cd': data = 'photos' holds something else than the run began with"):
        runs.open_run(output, {"data": "photos", "dataset": "34cd"})


def test_a_run_of_another_job_is_refused_by_the_jobs(tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    attempt(output, {"attack": "fgsm", "input": "digits", "limit": 3})
    with pytest.raises(ValueError, match=r"holds a run of the job attack; this one is of the job evaluation\. Give"):
        runs.open_run(output, {"data": "digits", "limit": None})


def test_overwrite_starts_afresh(tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    attempt(output, {"seed": 1})
    run = runs.open_run(output, {"seed": 2}, overwrite=True)
    assert run.attempts == []
    assert not storage.list_files(output)


def test_files_of_something_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="something else"):
            runs.open_run(str(tmp_path), {"seed": 1}, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").exists()


def test_a_run_that_is_held_refuses_a_second(tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    with runs.hold(output, {"seed": 1}) as run:
        run.begin()
        with pytest.raises(ValueError, match="writes to this output since"), runs.hold(output, {"seed": 1}):
            pass
    with runs.hold(output, {"seed": 1}) as run:
        assert not run.finished


def test_an_overwrite_that_was_cut_off_is_not_taken_for_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = str(tmp_path)
    runs.open_run(output, {"seed": 1}).begin()
    with monkeypatch.context() as patch:
        patch.setattr(storage, "clear", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            runs.open_run(output, {"seed": 1}, overwrite=True)
    with pytest.raises(ValueError, match="--overwrite"):
        runs.open_run(output, {"seed": 1})
    assert not runs.open_run(output, {"seed": 1}, overwrite=True).finished


def test_drafts_of_a_lease_do_not_make_an_output_anothers(tmp_path: Path) -> None:
    (tmp_path / ("._LEASE." + "0" * 32)).write_text("{}")
    assert runs.open_run(str(tmp_path), {"seed": 1}).attempts == []


def test_the_lease_names_the_attempt_of_run_json(tmp_path: Path) -> None:
    with runs.hold(str(tmp_path), {"seed": 1}) as run, run.attempt({}, {}):
        (entry,) = json.loads((tmp_path / "run.json").read_text())["attempts"]
        assert json.loads((tmp_path / "_LEASE").read_text())["attempt"] == entry["id"]


def test_the_same_content_may_be_at_another_place(tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    there = {"data": "/mnt/a/mnist", "dataset": "1f", "classifier": "weights/a_net", "classifier_sha256": "2e"}
    attempt(output, there)
    runs.open_run(output, {**there, "data": "s3://b/mnist", "classifier": "/home/me/weights/a_net"})
    for name, value in (("dataset", "0"), ("classifier_sha256", "0")):
        with pytest.raises(ValueError, match=name):
            runs.open_run(output, {**there, name: value})
    without = {name: value for name, value in there.items() if name != "classifier_sha256"}
    with pytest.raises(ValueError, match="classifier"):
        runs.open_run(output, {**without, "classifier": None})


def test_an_output_that_ray_would_delete_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "session/runtime_resources/working_dir_files/_ray_pkg_0"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(ValueError, match="give --output a URL"), runs.hold("runs/evaluate", {}):
        pass
    assert not list(copy.iterdir())
    with runs.hold(str(tmp_path / "run"), {}):
        pass


def test_a_folder_that_was_made_in_the_console_of_s3_is_free(s3: str) -> None:
    output = f"{s3}/made-in-the-console"
    fs, path = storage.filesystem(output)
    bucket, key, _ = fs.split_path(path)
    fs.call_s3("put_object", Bucket=bucket, Key=f"{key}/", Body=b"")
    assert storage.exists(output)
    attempt(output, {"seed": 1})
    assert runs.open_run(output, {"seed": 1}).finished
