"""Several actors share the cells of a dataset that is one unit of rows."""

import dataclasses
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
from conftest import wait_for
from grids import damaged as damaged
from grids import scores_and_samples
from meeting import met

from raypurify import storage
from raypurify.evaluation.grid import EvaluationConfig
from raypurify.jobs.evaluate import evaluate
from raypurify.jobs.resources import ActorPool, StagePools

TWO = ActorPool(actors=2, cpus_per_actor=1, batch=64)
LOCAL = dataclasses.replace(TWO, actors=1, local=True)


def config(small_classifier: str, purifier: str, **changes: object) -> EvaluationConfig:
    values: dict[str, object] = {
        "data": "digits",
        "limit": 16,
        "classifiers": (small_classifier,),
        "purifiers": (purifier, "threshold"),
        "attacks": ("r_fgsm,epsilon=0.1", "pgd,epsilon=0.1,steps=2"),
        "settings": ("white-box", "adaptive"),
    }
    return EvaluationConfig(**{**values, **changes})  # type: ignore[arg-type]


def counts(output: Path) -> list[tuple[int, int, int]]:
    attempts = storage.read_json(f"{output}/run.json")["attempts"]
    return [tuple(attempt["counts"][name] for name in ("in", "out", "rejected")) for attempt in attempts]


@pytest.mark.slow
def test_cells_of_one_unit_are_shared_by_actors_of_which_one_is_killed(
    local_ray: None, small_classifier: str, tmp_path: Path
) -> None:
    folder, shared, alone = (tmp_path / name for name in ("met", "shared", "alone"))
    folder.mkdir()
    asked = config(small_classifier, f"meeting:Meeting,folder={folder},driver={os.getpid()}")
    workers: list[int] = []

    def kill_one() -> None:
        wait_for(lambda: len(met(folder)) == 2, 120, "two actors")
        workers.extend(met(folder))
        os.kill(workers[0], signal.SIGKILL)
        (folder / "go").touch()

    killer = threading.Thread(target=kill_one)
    killer.start()
    summary = evaluate(asked, TWO, str(shared))
    killer.join()
    assert len(set(workers)) == 2, "two actors worked on the one unit"
    assert evaluate(asked, LOCAL, str(alone)).equals(summary)
    cells = summary["cell"].to_pylist()
    assert len(cells) == 8
    expected = scores_and_samples(alone, cells)
    for ours, theirs in zip(scores_and_samples(shared, cells), expected, strict=True):
        assert ours.equals(theirs)

    apart = StagePools(stages="apart", attack_actors=2).apart(TWO)
    for pools, lost in (({}, cells[::3]), (apart, cells[1::3])):
        for name in ("samples", *(f"scores/cell={cell}" for cell in lost)):
            shutil.rmtree(shared / name)
        (shared / "_SUCCESS").unlink()
        assert evaluate(asked, dataclasses.replace(TWO, actors=3), str(shared), pools=pools).equals(summary)
        for ours, theirs in zip(scores_and_samples(shared, cells), expected, strict=True):
            assert ours.equals(theirs)
    assert counts(shared) == [(16, 16, 0)] * 3


def test_images_that_cannot_be_read_are_counted_once(
    local_ray: None, small_classifier: str, damaged: str, tmp_path: Path
) -> None:
    asked = config(small_classifier, "identity", data=damaged, limit=None)
    summary = evaluate(asked, TWO, str(tmp_path / "run"))
    assert summary["n"].to_pylist() == [8] * 8
    assert counts(tmp_path / "run") == [(10, 8, 2)]
