"""A grid of an evaluation, what plain torch makes of it, and images that cannot be read."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raypurify import storage
from raypurify.data import open_source, read_rows
from raypurify.evaluation import results
from raypurify.evaluation.batch import Evaluator
from raypurify.evaluation.grid import EvaluationConfig, build_grid
from raypurify.runs import schema
from raypurify.training.batches import batch_of


def grid(small_classifier: str, small_purifier: str, **changes: object) -> EvaluationConfig:
    values: dict[str, object] = {
        "data": "digits",
        "split": "train",
        "limit": 254,
        "classifiers": (small_classifier,),
        "purifiers": (small_purifier, "threshold"),
        "attacks": ("r_fgsm,epsilon=0.1", "pgd,epsilon=0.1,steps=2"),
        "settings": ("white-box", "adaptive"),
        "adaptive_attacks": ("fgsm,epsilon=0.1",),
        "masking_images": 4,  # each unit that has one takes as long as for twenty
    }
    return EvaluationConfig(**{**values, **changes})  # type: ignore[arg-type]


def reference(config: EvaluationConfig) -> dict[str, pa.Table]:
    """Scores of each cell by plain torch, in one process."""
    source = open_source(config.data, split=config.split, limit=config.limit)
    layout = build_grid(config, source.name, source.rows)
    evaluator = Evaluator(layout, "cpu")
    tables: dict[str, list[pa.Table]] = {cell.hash: [] for cell in layout.cells}
    rows = read_rows(source.shards[0], 0, source.rows)
    for start in range(0, source.rows, 250):
        part = slice(start, start + 250)
        batch = batch_of(np.asarray(rows.images)[part], rows.labels[part], (), "cpu")
        for scored in evaluator.evaluate(batch.x, batch.y, rows.ids[part]):
            tables[scored.cell.hash].append(scored.scores)
    return {cell: pa.concat_tables(parts) for cell, parts in tables.items()}


@pytest.fixture(scope="session")
def expected(small_classifier: str, small_purifier: str) -> dict[str, pa.Table]:
    scores = reference(grid(small_classifier, small_purifier))
    checked = {cell for cell, table in scores.items() if table["pred_single_step"].null_count < len(table)}
    assert len(checked) == 2, "of each adaptive cell some images are checked for masked gradients"
    return scores


def scores_and_samples(output: Path, cells: list[str]) -> list[pa.Table]:
    """The scores of each cell, and the report's samples of all, each in one order."""
    scores = [results.read_scores(str(output), cell, schema.SCORES.names).sort_by("id") for cell in cells]
    samples = storage.read_tables(storage.list_files(f"{output}/samples"), schema.SAMPLES)
    return [*scores, samples.sort_by([("cell", "ascending"), ("id", "ascending")])]


def assert_equal(output: str, expected: dict[str, pa.Table]) -> None:
    for cell, wanted in expected.items():
        got = results.read_scores(output, cell, schema.SCORES.names).sort_by("id")
        wanted = wanted.sort_by("id")
        assert got["id"].to_pylist() == wanted["id"].to_pylist()
        for name in schema.SCORES.names:
            if pa.types.is_float32(wanted.schema.field(name).type):
                # A sign that ties to rounding may move a few pixels of an image by a step.
                close = np.isclose(got[name].to_numpy(), wanted[name].to_numpy(), rtol=1e-3, atol=1e-4)
                assert close.mean() > 0.995, name
            else:
                same = np.array(got[name].to_pylist(), object) == np.array(wanted[name].to_pylist(), object)
                assert same.mean() > 0.998, name


@pytest.fixture
def damaged(tmp_path: Path) -> str:
    """Ten images in a Parquet file; the first and the fourth are no images."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(10):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(buffer, "PNG")
        data = b"not an image" if number in (0, 3) else buffer.getvalue()
        rows.append({"image": {"bytes": data, "path": f"{number}.png"}, "label": number % 10})
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "test-00000.parquet")
    return str(tmp_path / "data")
