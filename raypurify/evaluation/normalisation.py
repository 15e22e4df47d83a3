"""Whether a classifier of the user's normalises its input as it was trained to: a look at a few clean images.

A network that normalises twice, or not at all, still answers. Its accuracy is low, and every figure behind it is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from raypurify.data import BATCH_PIXELS, Rows, Source, batch_size, narrowed, read_rows
from raypurify.models import Model
from raypurify.training.batches import batch_of

TRIED = 32
"""Images, spread over the data."""
LEAST = 8
"""Images: fewer tell nothing."""
PIXELS = 1 << 21
"""Pixels (height times width) of all of them: of larger images, fewer are tried."""
ENOUGH = 0.75
"""Share of them, in [0, 1]: a classifier that is right on so many is not asked again."""
GAIN = 0.25
"""Share of them, in [0, 1], by which it has to do better in another way for a warning."""
STILL = 0.02
"""Logits whose spread from image to image is below this share of that from class to class move little."""

Recipe = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of the pixels of each channel, in [0, 1]."""
RECIPES: dict[int, dict[str, Recipe]] = {
    1: {"MNIST's": ((0.1307,), (0.3081,)), "the usual": ((0.5,), (0.5,))},
    3: {
        "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "the usual": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    },
}
"""Those that published networks were trained with, by the number of channels."""


def warnings(classifiers: Iterable[Model], source: Source) -> list[str]:
    """A line for each classifier that seems to normalise in another way than it was trained to.

    Networks that were trained by this project are not asked: they normalise inside.

    Args:
        classifiers: which are asked.
        source: labelled images, numbered as the classifiers number their classes.
    """
    asked = [model for model in classifiers if model.kind == "classifier" and "kind" not in model.config]
    if not asked or source.is_attacked:
        return []
    tried = narrowed(source, np.unique(np.linspace(0, source.rows - 1, min(TRIED, source.rows)).astype(np.int64)))
    x, y = _of_one_shape([read_rows(shard, 0, shard.rows) for shard in tried.shards])
    few = batch_size(TRIED, PIXELS, (*x.shape[2:], x.shape[1])) if len(y) else 0
    if min(few, len(y)) < LEAST:
        return []
    return [line for model in asked if (line := _warning(model, x[:few], y[:few]))]


def _of_one_shape(pieces: Iterable[Rows]) -> tuple[Tensor, Tensor]:
    """The images of the commonest shape, and their labels."""
    rows = [(image, label) for piece in pieces for image, label in zip(piece.images, piece.labels, strict=True)]
    if not rows:
        return torch.empty(0), torch.empty(0, dtype=torch.int64)
    shape = Counter(image.shape for image, _ in rows).most_common(1)[0][0]
    images, labels = zip(*(row for row in rows if row[0].shape == shape), strict=True)
    batch = batch_of(np.stack(images), np.array(labels, np.int64), (), "cpu")
    return batch.x, batch.y


def _warning(model: Model, x: Tensor, y: Tensor) -> str | None:
    network = model.build()
    logits = _logits(network, x)
    right = _share_right(logits, y)
    if right >= ENOUGH:
        return None
    told = f"{model.name} is right on {right:.0%} of {len(y)} clean images"
    ways = _ways(x.shape[1])
    found = dict.fromkeys(ways, 0.0)
    for way, change in ways.items():
        with suppress(Exception):  # a network may refuse pixels outside [0, 1]
            found[way] = _share_right(_logits(network, change(x)), y)
    way = max(found, key=lambda one: found[one])
    if found[way] >= right + GAIN:
        return f"{told}, and on {found[way]:.0%} {way}"
    spread = logits.std(dim=0).mean() / logits.std(dim=1).mean().clamp(min=1e-12)
    doubt = "Does it normalise as it was trained to, and number the classes as the data do?"
    if len(y) > 1 and spread < STILL:
        return f"{told}, and its logits hardly move from image to image. {doubt}"
    chance = 1 / logits.shape[1]
    if right <= chance + 2 * (chance * (1 - chance) / len(y)) ** 0.5 and right < 0.5:
        return f"{told}, as one who guesses. {doubt}"
    return None


def _ways(channels: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Other ways to give a network its images, and what it says of the network where one is better."""

    def normalised(recipe: Recipe) -> Callable[[Tensor], Tensor]:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in recipe)
        return lambda x: (x - mean) / std

    def undone(recipe: Recipe) -> Callable[[Tensor], Tensor]:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in recipe)
        return lambda x: x * std + mean

    zeros, scales = (",".join([value] * channels) for value in ("0", "1/255"))
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        f"with pixels in [0, 255]: it seems to expect these. Give mean=[{zeros}],std=[{scales}]": lambda x: 255 * x
    }
    for name, recipe in RECIPES.get(channels, {}).items():
        mean, std = (f"[{','.join(map(str, values))}]" for values in recipe)
        ways[f"normalised by {name} mean and std: it seems not to normalise. Give mean={mean},std={std}"] = normalised(
            recipe
        )
        ways[f"once {name} mean and std are undone: it seems to normalise twice. Leave one of the two out"] = undone(
            recipe
        )
    return ways


def _logits(network: nn.Module, x: Tensor) -> Tensor:
    part = batch_size(TRIED, BATCH_PIXELS, (*x.shape[2:], x.shape[1]))
    with torch.no_grad():
        return torch.cat([cast(Tensor, network(few)).float() for few in x.split(part)])


def _share_right(logits: Tensor, y: Tensor) -> float:
    return float((logits.argmax(dim=1) == y).float().mean())
