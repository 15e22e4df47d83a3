"""The metrics of a cluster tell what a job's own run.json does."""

import json
import re
from pathlib import Path

import pytest
import ray
import requests
from conftest import ROOT, wait_for

from raypurify import storage
from raypurify.distributed.metrics import COUNTED
from raypurify.evaluation.grid import EvaluationConfig
from raypurify.jobs.evaluate import evaluate
from raypurify.jobs.resources import ActorPool
from raypurify.runs import stages


def scraped(run: str) -> dict[str, float]:
    """The metrics of a run, as the node's Prometheus endpoint has them: by name, and the value of ``stage``."""
    (node,) = ray.nodes()
    page = requests.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10).text
    found = {}
    for name, tags, value in re.findall(r"^(ray_raypurify_\w+)\{(.*)\} (\S+)$", page, re.MULTILINE):
        if f'run="{run}"' in tags:
            stage = re.search(r'stage="(\w+)"', tags)
            found[f"{name}_{stage[1]}" if stage else name] = float(value)
    return found


def test_metrics_tell_what_the_run_does(local_ray: None, small_classifier: str, tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    attacks = ("none", "fgsm,epsilon=0.2")
    config = EvaluationConfig(data="digits", limit=40, classifiers=(small_classifier,), attacks=attacks)
    evaluate(config, ActorPool(actors=1, batch=16), output)
    counts = storage.read_json(f"{output}/run.json")["attempts"][0]["counts"]
    wait_for(lambda: scraped(output).get("ray_raypurify_images_total") == 40, 60, "metrics")
    found = scraped(output)
    assert found["ray_raypurify_units_left"] == 0
    for name, (metric, _) in COUNTED.items():
        assert found.get(f"ray_raypurify_{metric}_total", 0) == counts[name]
    assert 0 < counts["fooled"] <= counts["right"] <= 40
    for stage in stages.STAGES:
        seconds = found.get(f"ray_raypurify_seconds_total_{stage}", 0)
        assert seconds == pytest.approx(counts[f"seconds_{stage}"], abs=0.01)
    assert counts["seconds_attack"] > 0


def test_the_dashboard_asks_for_metrics_that_a_job_has() -> None:
    board = json.loads((ROOT / "cluster/grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"ray_raypurify_\w+", query)}
    counters = {*(metric for metric, _ in COUNTED.values()), "seconds"}
    assert asked == {"ray_raypurify_units_left", *(f"ray_raypurify_{name}_total" for name in counters)}
    places = [panel["gridPos"] for panel in board["panels"]]
    assert len({(place["x"], place["y"]) for place in places}) == len({panel["id"] for panel in board["panels"]}) == 6
