"""Plain tensors: the images of a dataset, and how many a classifier gets right, clean and under attacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor, nn

from raypurify import models, plugins
from raypurify.attacks import Attack, check_attack, check_images, check_logits, frozen, run
from raypurify.attacks._active import begin_draws, logits_of
from raypurify.data import DataError, View, open_source, read_rows
from raypurify.evaluation.grid import built_attack
from raypurify.training.batches import batch_of

ROWS = 1000
"""How many rows a row group has; a row group is read at once."""

SHOWN = 3
"""How many shapes a message names."""


def load_images(
    data: str,
    *,
    split: Literal["train", "test"] = "test",
    limit: int | None = None,
    resize: int | None = None,
    crop: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The images and labels of a dataset, all in memory.

    Args:
        data: as the flag ``--data`` takes it: digits, mnist, cifar10, a URL or path, or my_package.module:callable.
        split: of the dataset.
        limit: so many images only.
        resize: pixels of the shorter side that each image is brought to.
        crop: pixels of the side of a square, each image's centre.

    Returns:
        x: (N, C, H, W) float32 in [0, 1]; y: (N,) int64.

    Raises:
        DataError: no such data, an image that cannot be decoded, or images of several shapes.
    """
    source = open_source(data, split=split, limit=limit, view=View(resize=resize, crop=crop))
    parts = [read_rows(shard, 0, shard.rows) for shard in source.shards]
    for reject in (reject for part in parts for reject in part.rejects):
        raise DataError(f"{reject['url']}: {reject['reason']}")
    images = [image for part in parts for image in part.images]
    shapes = sorted({image.shape for image in images})
    if len(shapes) != 1:
        some = ", ".join(map(str, shapes[:SHOWN])) + (f", ... ({len(shapes)} in all)" if len(shapes) > SHOWN else "")
        mend = "give resize and crop" if len({shape[2] for shape in shapes}) < 2 else "make them all grey, or all RGB"
        raise DataError(f"{data}: expected images of one shape, got [{some}]; {mend}")
    batch = batch_of(np.stack(images), np.concatenate([part.labels for part in parts]), (), "cpu")
    return batch.x, batch.y


def write_images(path: str, x: Tensor | NDArray[Any], y: Tensor | NDArray[Any]) -> None:
    """Write images and labels as a Parquet file, a dataset for ``--data``.

    Args:
        path: of the file.
        x: (N, H, W) or (N, H, W, C) uint8; or (N, C, H, W) in [0, 1], multiples of 1/255, which datasets hold.
        y: (N,) whole numbers, the labels.

    Raises:
        ValueError: images or labels of other shapes, types or values.
    """
    images, labels = (np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values) for values in (x, y))
    if images.dtype != np.uint8 and images.ndim == 4:
        images = np.moveaxis(images, 1, 3) * 255.0
        rounded = np.round(images)
        if not (np.abs(images - rounded) < 0.01).all() or images.min(initial=0) < 0 or images.max(initial=0) > 255:
            raise ValueError("x: expected multiples of 1/255 in [0, 1], as images are stored: (x * 255).round() / 255")
        images = rounded.astype(np.uint8)
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not len(images):
        raise ValueError(
            "x: expected images, (N, H, W) or (N, H, W, 1 or 3) uint8 or (N, 1 or 3, H, W) floats, got "
            f"{tuple(np.shape(x))} {getattr(x, 'dtype', '')}"
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"y: expected ({len(images)},) whole numbers, got {tuple(labels.shape)} {getattr(y, 'dtype', '')}"
        )
    if labels.min() < 0:
        raise ValueError(f"y: expected classes from 0 on, got {labels.min()}")
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(images))
    table = pa.table({"image": tensors, "label": pa.array(labels.astype(np.int64))})
    pq.write_table(table, path, row_group_size=ROWS)


def accuracy_under(
    model: nn.Module, x: Tensor, y: Tensor, attacks: Sequence[str | Attack], *, seed: int = 0, batch: int = 250
) -> dict[str, float]:
    """How many images a classifier gets right, clean and under each attack, by predicting again in float32.

    Args:
        model: (N, C, H, W) in [0, 1] -> logits (N, K); called in eval, and left as it was. One that purifies first is
            attacked by an attacker who knows the purifier; :class:`raypurify.attacks.Composite` helps where that has
            no gradient, or draws at random.
        x: (N, C, H, W) float32 in [0, 1], on the model's device.
        y: (N,) int64, the labels.
        attacks: ``NAME[,KEY=VALUE...]``, or attacks such as ``raypurify.attacks.pgd.PGD(epsilon=0.3)``.
        seed: of all randomness; with the number of an image, so that no batch changes it.
        batch: images that are attacked at once.

    Returns:
        Shares in [0, 1]: ``clean``, and one for each attack by its text.

    Raises:
        ValueError: an unknown attack; a model or tensors that :func:`raypurify.attacks.run` refuses; no list of
            attacks, or a batch below 1.
    """
    if isinstance(attacks, str):
        raise ValueError(f"attacks: expected a list, got the text {attacks!r}; give [{attacks!r}]")
    if batch < 1:
        raise ValueError(f"batch must be at least 1; got {batch!r}")
    by_text = {
        str(attack): built_attack(plugins.Spec.parse(attack)) if isinstance(attack, str) else attack
        for attack in attacks
    }
    for attack in by_text.values():
        check_attack(attack)
    check_images(x, y)
    check_logits(model, x[:1], y)
    right = dict.fromkeys(("clean", *by_text), 0)
    with models.full_float32(), frozen(model):
        for start in range(0, len(x), batch):
            part = slice(start, start + batch)
            right["clean"] += _right(model, x[part], y[part])
            for text, attack in by_text.items():
                attacked = run(attack, model, x[part], y[part], seed=seed, first=start)
                right[text] += _right(model, attacked.x_adv, y[part])
    return {text: count / len(x) for text, count in right.items()}


def _right(model: nn.Module, x: Tensor, y: Tensor) -> int:
    begin_draws(model, "verdict")
    return int((logits_of(model, x).argmax(dim=1) == y).sum())
