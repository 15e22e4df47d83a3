"""A few images of each cell with their pixels, for the report. They are attacked once more, which repeats them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from raypurify import storage
from raypurify.evaluation.batch import Evaluator, Scored
from raypurify.evaluation.results import scores_folder
from raypurify.evaluation.units import BatchSize, Unit, batches_of
from raypurify.runs import schema
from raypurify.seeds import seed_of
from raypurify.training.batches import batch_of

AT_RANDOM = 2
"""Images of each cell that the report shows, picked by the seed."""
WORST = 2
"""Images of each cell that the report shows because purification failed on them."""

TOP = 5
"""Classes that the report names of an image's answers."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image that the report shows: in which unit it is, and why: "random", or "worst"."""

    id: str
    unit: str
    kind: str


def choose(output: str, cell: str, seed: int) -> list[Sample]:
    """A few images of a cell: the worst, and some drawn by the seed and their ids.

    The worst are those that stay wrong once purified, and of these, or where all are right, those of the lowest PSNR.
    """
    columns = pa.schema([schema.SCORES.field(name) for name in ("id", "label", "pred_purified", "psnr_purified")])
    worst: list[tuple[bool, float, str, str]] = []
    drawn: list[tuple[int, str, str]] = []
    for url in storage.list_files(scores_folder(output, cell), ".parquet"):
        unit = storage.stem(url)
        table = storage.read_tables([url], columns)
        right = pc.equal(table["label"], table["pred_purified"])
        columns_read = (right, table["psnr_purified"], table["id"])
        named = [(*row, unit) for row in zip(*(column.to_pylist() for column in columns_read), strict=True)]
        worst = heapq.nsmallest(WORST, [*worst, *named])
        drawn = heapq.nsmallest(
            AT_RANDOM, [*drawn, *((seed_of(seed, "sample", name), name, unit) for _, _, name, _ in named)]
        )
    kinds = {(name, unit): "worst" for *_, name, unit in worst} | {(name, unit): "random" for _, name, unit in drawn}
    return [Sample(id=name, unit=unit, kind=kind) for (name, unit), kind in kinds.items()]


def made(
    evaluator: Evaluator, cell: str, units: Sequence[Unit], chosen: Sequence[Sample], batch: BatchSize
) -> pa.Table:
    """Rows of ``schema.SAMPLES``.

    Args:
        evaluator: of the grid.
        cell: hash of a cell of it.
        units: those of the run.
        chosen: see :func:`choose`.
        batch: images that the cell's were attacked in at once.
    """
    kinds = {sample.id: sample.kind for sample in chosen}
    coupled = any(group.couples_batch for group in evaluator.grid.groups for own in group.cells if own.hash == cell)
    tables = [schema.SAMPLES.empty_table()]
    for unit in units:
        if unit.name not in {sample.unit for sample in chosen}:
            continue
        for ids, images, labels in _batches_with(unit, set(kinds), batch, whole=coupled):
            sent = batch_of(images, labels, (), evaluator.device)
            for scored in evaluator.evaluate(sent.x, sent.y, ids, {cell}):
                tables.append(_rows(evaluator, scored, sent.x, kinds))
    return pa.concat_tables(tables)


def _batches_with(
    unit: Unit, names: AbstractSet[str], size: BatchSize, *, whole: bool
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """The batches that a unit is scored in, of which some ids are in ``names``: ``whole``, or just these rows."""
    for ids, images, labels in batches_of(unit.read(), size):
        named = [index for index, name in enumerate(ids) if name in names]
        if named:
            kept = list(range(len(ids))) if whole else named
            yield [ids[index] for index in kept], images[kept], labels[kept]


def _rows(evaluator: Evaluator, scored: Scored, x: Tensor, kinds: Mapping[str, str]) -> pa.Table:
    """The rows of a batch that have a kind, as ``schema.SAMPLES`` has them."""
    pixels = {"clean": x, "adversarial": scored.x_adv, "purified": scored.x_pure}
    sampled = []
    for index, score in enumerate(scored.scores.to_pylist()):
        if score["id"] not in kinds:
            continue
        hwc = {name: images[index].permute(1, 2, 0).float().cpu() for name, images in pixels.items()}
        classifier = evaluator.classifiers[scored.cell.classifier]
        tops = {f"top_{name}": _top(classifier, images[index : index + 1]) for name, images in pixels.items()}
        sampled.append(
            {
                **{name: score[name] for name in schema.SAMPLES.names if name in score},
                "cell": scored.cell.hash,
                "kind": kinds[score["id"]],
                "shape": list(hwc["clean"].shape),
                **{name: image.flatten().numpy() for name, image in hwc.items()},
                **tops,
            }
        )
    return pa.Table.from_pylist(sampled, schema.SAMPLES)


def _top(classifier: nn.Module, x: Tensor) -> list[dict[str, float]]:
    """The likeliest classes of one image (1, C, H, W), and their probabilities."""
    with torch.no_grad():
        probabilities = classifier(x).float().softmax(dim=1)[0]
    values, classes = probabilities.topk(min(TOP, len(probabilities)))
    found = zip(classes.tolist(), values.tolist(), strict=True)
    return [{"class": number, "probability": probability} for number, probability in found]
