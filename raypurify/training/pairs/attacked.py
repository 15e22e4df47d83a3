"""Images that were attacked by ``raypurify attack`` beforehand, each found by the id of its clean image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypurify.data import DataError, Shard, Source, ids_of, open_source, take_rows
from raypurify.seeds import seed_of
from raypurify.training.batches import Batch, batch_of
from raypurify.training.pairs import PairSetup, choices

KEPT_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class AttackedDataset:
    """An attacked dataset; no attack is made while training.

    Each worker keeps the first 256 MiB of pixels that it reads. What lies beyond is read again at every step.
    """

    url: str
    """``OUTPUT/images`` of ``raypurify attack``, or another dataset whose column ``id`` has the training's ids."""
    split: Literal["train", "test"] = "train"
    """The split of the attacked dataset that is read."""

    def __post_init__(self) -> None:
        if self._ids is None:
            raise DataError(f"{self.url}: these images have no column 'id', by which a clean image finds its partner")

    @cached_property
    def source(self) -> Source:
        """The attacked images."""
        return open_source(self.url, split=self.split)

    @cached_property
    def _ids(self) -> pa.ChunkedArray | None:
        return ids_of(self.source)

    @cached_property
    def _kept(self) -> dict[int, NDArray[np.uint8]]:
        """All images of a shard, by its number."""
        return {}

    @cached_property
    def _index(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Hashes of all ids, ascending, and the row of each, counted through the shards."""
        assert self._ids is not None
        hashes = np.array([seed_of(name) for name in self._ids.to_pylist()], np.int64)
        order = np.argsort(hashes)
        return hashes[order], order

    def __call__(self, batch: Batch, setup: PairSetup) -> Tensor:
        """See :class:`raypurify.training.pairs.Pairs`.

        Raises:
            DataError: an image has no attacked partner, or one that cannot be decoded or has another shape.
        """
        wanted = choices(batch, 1, setup.clean_share) == 0
        names = [name for name, is_wanted in zip(batch.ids, wanted.tolist(), strict=True) if is_wanted]
        _, channels, height, width = batch.x.shape
        images = self._read(names, (height, width, channels))
        chosen = torch.from_numpy(wanted).to(batch.x.device)
        x_adv = torch.zeros_like(batch.x)
        x_adv[chosen] = batch_of(images, np.zeros(len(names), np.int64), (), str(batch.x.device)).x
        return torch.where(chosen[:, None, None, None], setup.augment(x_adv), batch.x)

    def _read(self, names: Sequence[str], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """The attacked images of these ids: (N, H, W, C)."""
        rows, shards = self._rows(names), self.source.shards
        starts = np.cumsum([0, *(shard.rows for shard in shards)])
        within = np.searchsorted(starts, rows, side="right") - 1
        images = np.empty((len(names), *shape), np.uint8)
        for shard in np.unique(within).tolist():
            places = np.flatnonzero(within == shard)
            images[places] = self._of_shard(shard, rows[places] - starts[shard], shape)
        return images

    def _of_shard(self, index: int, rows: NDArray[np.int64], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        shard = self.source.shards[index]
        room = KEPT_BYTES - sum(images.nbytes for images in self._kept.values())
        if index not in self._kept and shard.rows * np.prod(shape) <= room:
            self._kept[index] = _decoded(shard, np.arange(shard.rows), shape)
        return self._kept[index][rows] if index in self._kept else _decoded(shard, rows, shape)

    def _rows(self, names: Sequence[str]) -> NDArray[np.int64]:
        known, rows = self._index
        hashes = np.array([seed_of(name) for name in names], np.int64)
        places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        missing = np.flatnonzero(known[places] != hashes)
        if len(missing):
            raise DataError(
                f"{self.url} has no image with the id {names[missing[0]]!r}; attack the data of this training, of the "
                "same split: raypurify attack --split train --input DATA"
            )
        return rows[places]


def _decoded(shard: Shard, rows: NDArray[np.int64], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    read = take_rows(shard, rows)
    if read.rejects:
        raise DataError(f"{read.rejects[0]['url']}: {read.rejects[0]['reason']}")
    for name, image in zip(read.ids, read.images, strict=True):
        if image.shape != shape:
            raise DataError(f"{shard.url}: {name!r} has the shape {image.shape}; its clean image has {shape}")
    return np.stack(list(read.images))


build = AttackedDataset
