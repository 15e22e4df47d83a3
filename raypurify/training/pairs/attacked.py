"""Images that were attacked by ``raypurify attack`` beforehand, each found by the id of its clean image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypurify import storage
from raypurify.data import DataError, Shard, Source, View, ids_of, open_source, take_rows
from raypurify.seeds import seed_of
from raypurify.training.batches import Batch, batch_of
from raypurify.training.pairs import PairSetup, choices

KEPT_BYTES = 256 * 2**20

Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True)
class AttackedDatasets:
    """Attacked datasets; no attack is made while training. The training is on the images that one of them has.

    Each worker keeps the first 256 MiB of pixels that it reads of a dataset. What lies beyond is read again at every
    step.
    """

    url: str | Sequence[str]
    """``OUTPUT/images`` of ``raypurify attack``, or another dataset whose column ``id`` has the training's ids; or
    several, url=["A","B"]: an image's seed, another in each epoch, picks one of those that have it. The fewer images a
    dataset has, the higher is its chance, so that it is not lost among larger ones."""
    split: Split = "train"
    """The split of the attacked datasets that is read."""

    def __post_init__(self) -> None:
        for dataset in self.datasets:
            dataset.check()

    @cached_property
    def datasets(self) -> list[_Dataset]:
        """Each of the datasets."""
        urls = [self.url] if isinstance(self.url, str) else self.url
        return [_Dataset(url=url, split=self.split) for url in urls]

    def has(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """Which of the images, by their ids, one of the datasets has: (N,)."""
        hashes = _hashes(names)
        return np.logical_or.reduce([dataset.has(hashes) for dataset in self.datasets])

    def view(self) -> View:
        """How the clean images were shown that were attacked, as the runs tell that attacked them.

        Raises:
            ValueError: differently.
        """
        views = {dataset.view: dataset.url for dataset in self.datasets}
        if len(views) > 1:
            told = ", ".join(f"{url} with {view.flags or 'no view'}" for view, url in views.items())
            raise ValueError(f"train_against: the images were attacked in different views: {told}")
        return next(iter(views))

    def holds(self, data: str) -> bool:
        """Whether ``data`` is one of these datasets, and not what they were made from."""
        return storage.absolute(data) in [storage.absolute(dataset.url).rstrip("/") for dataset in self.datasets]

    def __call__(self, batch: Batch, setup: PairSetup) -> Tensor:
        """See :class:`raypurify.training.pairs.Pairs`.

        Raises:
            DataError: an image has no attacked partner, or one that cannot be decoded or has another shape.
        """
        chosen = choices(batch, self._chances(batch.ids), setup.clean_share)
        _, channels, height, width = batch.x.shape
        device = batch.x.device
        x_adv = torch.zeros_like(batch.x)
        for number, dataset in enumerate(self.datasets):
            rows = np.flatnonzero(chosen == number)
            images = dataset.read([batch.ids[row] for row in rows.tolist()], (height, width, channels))
            x_adv[torch.from_numpy(rows).to(device)] = batch_of(
                images, np.zeros(len(rows), np.int64), (), str(device)
            ).x
        attacked = torch.from_numpy(chosen >= 0).to(device)[:, None, None, None]
        return torch.where(attacked, setup.augment(x_adv), batch.x)

    def _chances(self, names: Sequence[str]) -> NDArray[np.float64]:
        """How likely each image takes its partner from each dataset, up to a factor: (N, datasets).

        An image that none has is left to the first, whose error names it.
        """
        hashes = _hashes(names)
        chances = np.stack([dataset.has(hashes) / max(dataset.source.rows, 1) for dataset in self.datasets], axis=1)
        chances[~chances.any(axis=1), 0] = 1
        return chances


@dataclass(frozen=True, kw_only=True)
class _Dataset:
    """One of the datasets."""

    url: str
    split: Split

    @cached_property
    def source(self) -> Source:
        return open_source(self.url, split=self.split)

    @property
    def view(self) -> View:
        """How the clean images were shown, where the run's ``run.json`` stands beside its images; else as stored."""
        url = storage.join(self.url.rstrip("/").rpartition("/")[0] or ".", "run.json")
        told = storage.read_json(url).get("identity") if storage.exists(url) else None
        return View(resize=(told or {}).get("resize"), crop=(told or {}).get("crop"))

    def check(self) -> None:
        """Read the ids.

        Raises:
            DataError: there are none.
        """
        _ = self._index

    def has(self, hashes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the ids, by their hashes, are there: (N,)."""
        return self._find(hashes)[1]

    def read(self, names: Sequence[str], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """The images of these ids: (N, H, W, C)."""
        rows, shards = self._rows(names), self.source.shards
        starts = np.cumsum([0, *(shard.rows for shard in shards)])
        within = np.searchsorted(starts, rows, side="right") - 1
        images = np.empty((len(names), *shape), np.uint8)
        for shard in np.unique(within).tolist():
            places = np.flatnonzero(within == shard)
            images[places] = self._of_shard(shard, rows[places] - starts[shard], shape)
        return images

    @cached_property
    def _index(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Hashes of all ids, ascending, and the row of each, counted through the shards."""
        ids = ids_of(self.source)
        if ids is None:
            raise DataError(f"{self.url}: these images have no column 'id', by which a clean image finds its partner")
        hashes = _hashes(ids.to_pylist())
        order = np.argsort(hashes)
        return hashes[order], order

    @cached_property
    def _kept(self) -> dict[int, NDArray[np.uint8]]:
        """All images of a shard, by its number."""
        return {}

    def _of_shard(self, index: int, rows: NDArray[np.int64], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        shard = self.source.shards[index]
        room = KEPT_BYTES - sum(images.nbytes for images in self._kept.values())
        if index not in self._kept and shard.rows * np.prod(shape) <= room:
            self._kept[index] = _decoded(shard, np.arange(shard.rows), shape)
        return self._kept[index][rows] if index in self._kept else _decoded(shard, rows, shape)

    def _rows(self, names: Sequence[str]) -> NDArray[np.int64]:
        places, found = self._find(_hashes(names))
        missing = np.flatnonzero(~found)
        if len(missing):
            raise DataError(
                f"{self.url} has no image with the id {names[missing[0]]!r}; attack the data of this training, of the "
                "same split: raypurify attack --split train --input DATA"
            )
        rows: NDArray[np.int64] = self._index[1][places]
        return rows

    def _find(self, hashes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The place of each id in the index, by its hash, and whether it is there."""
        known, _ = self._index
        places, behind = (np.searchsorted(known, hashes, side=side) for side in ("left", "right"))
        return places, places < behind


def _hashes(names: Sequence[str]) -> NDArray[np.int64]:
    return np.array([seed_of(name) for name in names], np.int64)


def _decoded(shard: Shard, rows: NDArray[np.int64], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    read = take_rows(shard, rows)
    if read.rejects:
        raise DataError(f"{read.rejects[0]['url']}: {read.rejects[0]['reason']}")
    for name, image in zip(read.ids, read.images, strict=True):
        if image.shape != shape:
            raise DataError(f"{shard.url}: {name!r} has the shape {image.shape}; its clean image has {shape}")
    return np.stack(list(read.images))


build = AttackedDatasets
