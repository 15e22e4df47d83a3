"""The two engines give the same results, and each goes on with what the other began."""

import dataclasses
import importlib
from pathlib import Path

import pytest
from conftest import lose
from grids import scores_and_samples

import raypurify
from raypurify import storage
from raypurify.evaluation.certification import CertificationConfig
from raypurify.evaluation.generation import GenerationConfig
from raypurify.evaluation.grid import EvaluationConfig
from raypurify.jobs.attack import attack
from raypurify.jobs.certify import certify
from raypurify.jobs.evaluate import evaluate
from raypurify.jobs.resources import ActorPool

ACTOR = ActorPool(actors=1, cpus_per_actor=1, batch=32)
POOLS = [ACTOR, dataclasses.replace(ACTOR, local=True)]


def test_an_evaluation(local_ray: None, small_classifier: str, small_purifier: str, tmp_path: Path) -> None:
    config = EvaluationConfig(
        data="digits",
        limit=48,
        classifiers=(small_classifier,),
        purifiers=(small_purifier, "threshold"),
        attacks=("r_fgsm,epsilon=0.1", "pgd,epsilon=0.1,steps=2"),
        settings=("white-box", "adaptive"),
        masking_images=4,
    )

    outputs = [tmp_path / "ray", tmp_path / "local"]
    summaries = [evaluate(config, pool, str(output)) for pool, output in zip(POOLS, outputs, strict=True)]
    summary = summaries[0]
    assert summaries[1].equals(summary)
    cells = summary["cell"].to_pylist()
    expected = scores_and_samples(outputs[0], cells)
    for ours, theirs in zip(scores_and_samples(outputs[1], cells), expected, strict=True):
        assert ours.equals(theirs)
    for pool, begun_by_the_other in zip(POOLS, reversed(outputs), strict=True):
        lose(begun_by_the_other, ["scores/*/000002.parquet", "samples/*", "report.html"])
        assert evaluate(config, pool, str(begun_by_the_other)).equals(summary)
        for ours, theirs in zip(scores_and_samples(begun_by_the_other, cells), expected, strict=True):
            assert ours.equals(theirs)
        run = storage.read_json(f"{begun_by_the_other}/run.json")
        assert [attempt["config"]["local"] for attempt in run["attempts"]] == [not pool.local, pool.local]
        assert run["attempts"][-1]["counts"]["in"] == 16


def test_an_attacked_dataset(local_ray: None, small_classifier: str, tmp_path: Path) -> None:
    config = GenerationConfig(input="digits", limit=60, attack="pgd,epsilon=0.1,steps=2", classifier=small_classifier)
    outputs = [tmp_path / "ray", tmp_path / "local"]
    figures = [attack(config, pool, str(output)) for pool, output in zip(POOLS, outputs, strict=True)]
    assert figures[0] == figures[1]
    urls = [sorted(storage.list_files(f"{output}/images")) for output in outputs]
    for ours, theirs in zip(*urls, strict=True):
        assert storage.read_table(ours).equals(storage.read_table(theirs))


def test_certificates(local_ray: None, tmp_path: Path) -> None:
    config = CertificationConfig(
        data="digits",
        limit=20,
        classifiers=("small_networks:linear",),
        purifiers=("gaussian_noise,sigma=0.05",),
        sigmas=(0.1,),
        draws=1050,
        guesses=50,
        attack_images=1,
    )
    outputs = [tmp_path / "ray", tmp_path / "local"]
    summaries = [certify(config, pool, str(output)) for pool, output in zip(POOLS, outputs, strict=True)]
    assert summaries[1].equals(summaries[0])
    urls = [sorted(storage.list_files(f"{output}/certificates", ".parquet")) for output in outputs]
    assert len(urls[0]) == 2
    expected = [storage.read_table(url) for url in urls[0]]
    assert [storage.read_table(url).equals(table) for url, table in zip(urls[1], expected, strict=True)] == [True] * 2
    lose(outputs[1], ["votes/*/draws=0001000", "certificates/*/000001.parquet", "attacked", "report.html"])
    assert certify(config, dataclasses.replace(ACTOR, actors=2, batch=50), str(outputs[1])).equals(summaries[0])
    assert [storage.read_table(url).equals(table) for url, table in zip(urls[1], expected, strict=True)] == [True] * 2


OWN = """
from torch import nn

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(28, 10)

    def forward(self, x):
        return self.head(picked(x))

def picked(x):
    return x[:, 0, 14]
"""


def test_a_network_that_workers_cannot_import(local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    network = importlib.import_module("only_here").Own()
    summaries = [
        raypurify.evaluate(
            data="digits",
            limit=40,
            classifiers=[network],
            purifiers=["identity"],
            attacks=["fgsm,epsilon=0.1"],
            actors=1,
            output=f"{tmp_path}/{engine}",
            engine=engine,
        )
        for engine in ("ray", "local")
    ]
    assert summaries[0].equals(summaries[1])
