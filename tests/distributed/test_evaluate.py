"""The Ray pipeline equals the plain-torch reference, row by row, and survives being cut off."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from grids import assert_equal, grid
from grids import damaged as damaged
from grids import expected as expected

from raypurify import storage
from raypurify.evaluation.grid import EvaluationConfig
from raypurify.jobs.evaluate import evaluate
from raypurify.jobs.resources import ActorPool, StagePools
from raypurify.runs import schema

ONE = ActorPool(actors=1, cpus_per_actor=1, batch=12)
LAYOUTS = {
    "one actor": ONE,
    "two actors": dataclasses.replace(ONE, actors=2, batch=20),
    "reads apart": dataclasses.replace(ONE, reads="apart"),
    "stages apart": ONE,
}
STAGES = StagePools(stages="apart", purify_actors=2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_pipeline_equals_the_reference(
    layout: str,
    local_ray: None,
    small_classifier: str,
    small_purifier: str,
    expected: dict[str, pa.Table],
    tmp_path: Path,
) -> None:
    output = str(tmp_path / "run")
    config = grid(small_classifier, small_purifier)
    pools = STAGES.apart(ONE) if layout == "stages apart" else {}
    summary = evaluate(config, LAYOUTS[layout], output, pools=pools)
    assert_equal(output, expected)
    assert summary.schema == schema.SUMMARY
    assert set(summary["cell"].to_pylist()) == set(expected)
    assert summary["n"].to_pylist() == [254] * len(expected)
    assert storage.is_success(output)
    assert storage.exists(storage.join(output, "report.html"))
    samples = storage.read_tables(storage.list_files(storage.join(output, "samples")), schema.SAMPLES)
    assert set(samples["cell"].to_pylist()) == set(expected)
    for sample in samples.to_pylist():
        score = expected[sample["cell"]].filter(pa.compute.field("id") == sample["id"]).to_pylist()[0]
        difference = np.array(sample["adversarial"]) - np.array(sample["clean"])
        assert np.abs(difference).max() == pytest.approx(score["linf"], abs=1e-4)
        assert sample["pred_purified"] == score["pred_purified"]


def test_an_image_that_cannot_be_read_ahead_is_a_row_of_rejects(
    local_ray: None, small_classifier: str, damaged: str, tmp_path: Path
) -> None:
    output = str(tmp_path / "run")
    config = EvaluationConfig(data=damaged, classifiers=(small_classifier,), attacks=("none",))
    assert evaluate(config, LAYOUTS["reads apart"], output)["n"].to_pylist() == [8]
    rejects = storage.read_tables(storage.list_files(f"{output}/rejects"), schema.REJECTS).to_pylist()
    assert [(row["id"], row["stage"]) for row in rejects] == [(f"test-00000.parquet#{row}", "decode") for row in (0, 3)]


def test_an_evaluation_on_s3(local_ray: None, s3: str, small_classifier: str, tmp_path: Path) -> None:
    weights = f"{s3}/weights/small"
    for name in ("model.safetensors", "config.json"):
        storage.write_bytes(f"{weights}/{name}", Path(small_classifier, name).read_bytes())
    config = EvaluationConfig(data="digits", limit=40, classifiers=(weights,), attacks=("none", "fgsm,epsilon=0.1"))
    there = evaluate(config, ONE, f"{s3}/evaluation")
    local = dataclasses.replace(ONE, local=True)
    here = evaluate(dataclasses.replace(config, classifiers=(small_classifier,)), local, str(tmp_path / "run"))
    same = [
        name
        for name in schema.SUMMARY.names
        if name.startswith(("n", "accuracy", "psnr", "ssim", "l")) and not here[name].null_count
    ]
    assert "accuracy_adversarial" in same
    for a, b in zip(there.select(same).to_pylist(), here.select(same).to_pylist(), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    assert storage.is_success(f"{s3}/evaluation")


def test_bad_input_is_refused_before_any_work(
    local_ray: None, small_classifier: str, small_purifier: str, tmp_path: Path
) -> None:
    output = str(tmp_path / "run")

    def refused(message: str, **changes: object) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            evaluate(grid(small_classifier, small_purifier, **changes), ONE, output)
        assert not storage.exists(output)

    refused("unknown name 'fgsmm'", attacks=("fgsmm",))
    refused("unknown name 'blur'", purifiers=("blur",))
    refused("has to be trained first", classifiers=("a_net",))
    refused("no checkpoint", classifiers=("nowhere/a_net",))
    refused("nowhere", data=str(tmp_path / "nowhere"))
    config = grid(small_classifier, small_purifier)
    with pytest.raises(ValueError, match="and 0 GPU"):
        evaluate(config, dataclasses.replace(ONE, gpus_per_actor=1), output)
