"""Training's batches of images, in an order that depends on the seed and the epoch alone.

The rows of each shard are permuted and cut into short pieces. The pieces of all shards are permuted and dealt to a
fixed number of lanes. A lane's rows are mixed in windows, so that each window holds rows of many distant places. A
global batch takes an equal part from each lane, one lane after the other, and a worker reads its own equal run of each
global batch. So what a step sees does not depend on the number of workers nor on how the data are sorted, no image is
trained on twice, and an epoch can be entered again after a crash without what came before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import groupby

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypurify.data import DataError, Rows, Shard, Source, narrowed, read_parts, spread, take_rows
from raypurify.data.formats import parquet
from raypurify.seeds import seed_of

ORDER = 2
"""Number of the order that follows from a configuration: a run of another cannot be gone on with."""
LANES = 8
"""Lanes of a global batch. Up to so many workers read whole lanes; more of them share a lane's pieces."""
WINDOW = 512
"""Rows of a lane that are mixed with each other, where the images are small."""
WINDOW_BYTES = 256 * 2**20
"""Bytes of the decoded images of a window of all lanes: what a read holds at most, encoded or raw."""
BLOCK_BYTES = 32 * 2**20
"""Bytes of the decoded images of a block of all lanes."""
KEPT_BYTES = 256 * 2**20
"""Bytes of Parquet that a process keeps for the next windows: a row group lies in most windows of a short epoch."""
PIECE = 16
"""Rows of a shard that stay together in an epoch of few windows."""
LONGEST_PIECE = 128
READS = 8
"""How often an epoch of many windows reads a shard, where rows cannot be read without the rest of it."""
FEW_WINDOWS = 32
HELD_OUT_ROWS = 128
"""Held-out images that are scored at once."""
TRIED = 1000
"""Images in the place of one that cannot be decoded that are tried at most."""


def limited(source: Source, labels: NDArray[np.int64], rows: int) -> tuple[Source, NDArray[np.int64]]:
    """A number of the rows, of each class its share, and their labels; all of them where there are no more.

    Args:
        labels: of all rows of the source.
    """
    if rows >= source.rows:
        return source, labels
    chosen = spread(labels, rows, seed_of("limit"))
    return narrowed(source, chosen), labels[chosen]


def hold_out(source: Source, labels: NDArray[np.int64], rows: int, seed: int) -> tuple[Source, Source]:
    """Split off exactly ``rows`` rows, picked by the seed, of each class its share: (the others, those).

    Args:
        labels: of all rows of the source.

    Raises:
        ValueError: the source has no more rows than that.
    """
    if rows > source.rows:
        raise ValueError(f"validation: {rows} images to hold out are more than the {source.rows} there are")
    if rows == source.rows:
        raise ValueError(f"validation: {rows} images to hold out leave none to train on; give a lower --validation")
    held = spread(labels, rows, seed_of(seed, "validation"))
    return narrowed(source, np.delete(np.arange(source.rows), held)), narrowed(source, held)


def held_out_rows(held: Source, image_shape: tuple[int, int, int], rank: int, workers: int) -> Iterator[Rows]:
    """A worker's part of the held-out rows, a few images at a time.

    Raises:
        DataError: an image of another shape than (H, W, C) = ``image_shape``.
    """
    length = max(1, min(HELD_OUT_ROWS, BLOCK_BYTES // int(np.prod(image_shape))))
    cuts = [(shard, start) for shard in held.shards for start in range(0, shard.rows, length)][rank::workers]
    for _, same in groupby(cuts, key=lambda cut: id(cut[0])):
        own = list(same)
        shard = own[0][0]
        for rows in read_parts(shard, [np.arange(start, min(start + length, shard.rows)) for _, start in own]):
            _check_shapes(rows, image_shape, shard)
            yield rows


def _check_shapes(rows: Rows, image_shape: tuple[int, int, int], shard: Shard) -> None:
    for name, image in zip(rows.ids, rows.images, strict=True):
        if image.shape != image_shape:
            raise DataError(
                f"{shard.url}, {name}: training needs images of one shape; expected (H, W, C) = {image_shape}, "
                f"got {image.shape}. --resize N --crop N makes them so, but for their channels"
            )


@dataclass(frozen=True, kw_only=True)
class EpochOrder:
    """How the rows of each epoch are ordered and shared out."""

    source: Source
    """The training rows."""
    image_shape: tuple[int, int, int]
    """(H, W, C) of every image."""
    seed: int
    batch: int
    """Images in a global batch; a multiple of LANES."""
    rank: int = 0
    workers: int = 1
    """Workers, of which this is number ``rank``; a divisor of ``batch``."""
    crops_at_random: bool = False
    """Whether images are cropped at random, and not at their centres."""

    def __post_init__(self) -> None:
        if self.batch % LANES:
            raise ValueError(f"batch must be a multiple of {LANES}; got {self.batch!r}")
        if self.batch % self.workers:
            raise ValueError(f"the number of workers must divide the batch of {self.batch}; got {self.workers!r}")
        if self.steps < 1:
            raise ValueError(
                f"a batch of {self.batch} needs more than the {self.source.rows} rows of the training data: give "
                "a lower --batch, or a lower --validation"
            )

    def shard(self, epoch: int, index: int) -> Shard:
        """A shard of the source; its images' crops, where they are at random, are others in each epoch."""
        shard = self.source.shards[index]
        return replace(shard, crop_seed=seed_of(self.seed, "crop", epoch)) if self.crops_at_random else shard

    @property
    def part(self) -> int:
        """Images that a lane gives to a global batch."""
        return self.batch // LANES

    @property
    def steps(self) -> int:
        """Global batches of an epoch; the rows that fill no batch are left out, others each time."""
        return self.source.rows // LANES // self.part

    @property
    def own(self) -> range:
        """This worker's images of a global batch."""
        size = self.batch // self.workers
        return range(self.rank * size, (self.rank + 1) * size)

    @property
    def lanes(self) -> range:
        """The lanes that this worker's images come from."""
        return range(self.own.start // self.part, -(-self.own.stop // self.part))

    @property
    def window_steps(self) -> int:
        """Global batches in a window."""
        return self._steps(min(WINDOW, WINDOW_BYTES // self._lane_bytes))

    @property
    def block_steps(self) -> int:
        """Global batches in a block, of which each worker reads its own images."""
        return min(self.window_steps, self._steps(BLOCK_BYTES // self._lane_bytes))

    @property
    def windows(self) -> int:
        """Windows of an epoch."""
        return -(-self.steps // self.window_steps)

    def windows_from(self, step: int) -> Iterator[tuple[int, int]]:
        """The windows of an epoch from a step on: the number of each, and how many global batches of it are past."""
        for number in range(step // self.window_steps, self.windows):
            yield number, max(0, step - number * self.window_steps)

    @property
    def _lane_bytes(self) -> int:
        return LANES * int(np.prod(self.image_shape))

    def _steps(self, lane_rows: int) -> int:
        return lane_rows // self.part or 1

    @property
    def piece(self) -> int:
        """Rows of a shard that stay together in an epoch.

        The shorter, the better sorted data are mixed, and the more shards a window reads: a row group of Parquet cannot
        be read in part. So a long epoch reads a shard ``READS`` times, or once for ``LONGEST_PIECE`` of its rows.
        """
        if self.windows <= FEW_WINDOWS:
            return PIECE
        return min(max(self.source.rows // len(self.source.shards) // READS, PIECE), LONGEST_PIECE)

    @cached_property
    def _pieces(self) -> NDArray[np.int64]:
        """(pieces, 3): shard, first and last row of each, in the shard's order of an epoch."""
        cuts = [
            np.stack([np.full(len(starts), index), starts, np.minimum(starts + self.piece, shard.rows)], axis=1)
            for index, shard in enumerate(self.source.shards)
            for starts in [np.arange(0, shard.rows, self.piece)]
        ]
        return np.concatenate(cuts)

    def window(self, epoch: int, number: int) -> NDArray[np.int64]:
        """This worker's images in a window of an epoch: (global batches, images, 2), each a shard and its row."""
        order = np.random.default_rng(seed_of(self.seed, "order", epoch)).permutation(len(self._pieces))
        pieces = self._pieces[order]
        starts = np.concatenate([[0], np.cumsum(pieces[:, 2] - pieces[:, 1])])
        lane_rows, window_rows = self.steps * self.part, self.window_steps * self.part
        first, last = number * window_rows, min((number + 1) * window_rows, lane_rows)
        permuted = lru_cache(maxsize=None)(lambda index: self._permuted(epoch, index))
        lanes = []
        for lane in self.lanes:
            begin, end = lane * lane_rows + first, lane * lane_rows + last
            low, high = np.searchsorted(starts, begin, side="right") - 1, np.searchsorted(starts, end, side="left")
            rows = np.concatenate([_of_shard(shard, permuted(shard)[i:j]) for shard, i, j in pieces[low:high].tolist()])
            rows = rows[begin - starts[low] : end - starts[low]]
            mix = np.random.default_rng(seed_of(self.seed, "mix", epoch, lane, number))
            lanes.append(mix.permutation(rows).reshape(-1, self.part, 2))
        before = self.own.start - self.lanes.start * self.part
        return np.concatenate(lanes, axis=1)[:, before : before + len(self.own)]

    def _permuted(self, epoch: int, index: int) -> NDArray[np.int64]:
        """The rows of a shard in its order of an epoch."""
        shard = self.source.shards[index]
        generator = np.random.default_rng(seed_of(self.seed, "rows", epoch, shard.key, shard.first))
        return generator.permutation(shard.rows)


def _of_shard(shard: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.stack([np.full(len(rows), shard), rows], axis=1)


def read_window(order: EpochOrder, epoch: int, number: int, skipped: int = 0) -> Iterator[pa.Table]:
    """The blocks of a window: a worker's rows, batch by batch. Each shard is read once.

    This process keeps row groups of Parquet for the next windows.

    Args:
        order: of the rows.
        epoch: which.
        number: of the window in the epoch.
        skipped: how many of its global batches are left out, at its beginning, and not read.

    Returns:
        Tables of ``image`` (H, W, C) uint8, ``label`` int64, ``seed`` int64, ``id``, and ``reject``: JSON of a row of
        ``schema.REJECTS`` where an image could not be decoded, and the next of the training data stands in its place.

    Raises:
        DataError: an image of another shape, or none can be decoded.
    """
    parquet.keep_row_groups(KEPT_BYTES)
    window = order.window(epoch, number)[skipped:]
    cuts = range(0, len(window), order.block_steps)
    blocks = [window[start : start + order.block_steps].reshape(-1, 2) for start in cuts]
    shards = np.unique(window[:, :, 0]).tolist()
    readers = {
        shard: read_parts(order.shard(epoch, shard), [block[block[:, 0] == shard, 1] for block in blocks])
        for shard in shards
    }
    for block in blocks:
        filled = _Block(order, epoch, len(block))
        for shard, reader in readers.items():
            filled.add(np.flatnonzero(block[:, 0] == shard), next(reader), order.source.shards[shard])
        for place in np.flatnonzero(filled.missing).tolist():
            filled.replace(place, *block[place].tolist())
        yield filled.table()


def epoch_batches(order: EpochOrder, epoch: int, first: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """A worker's batches of an epoch from a step on, read as they are asked for: the columns of :func:`read_window`."""
    for number, skipped in order.windows_from(first):
        for block in read_window(order, epoch, number, skipped):
            for start in range(0, len(block), len(order.own)):
                batch = block.slice(start, len(order.own))
                images = batch["image"].combine_chunks().to_numpy_ndarray()
                yield {name: batch[name].to_numpy() for name in ("label", "seed", "id", "reject")} | {"image": images}


class _Block:
    """The rows of a block, being filled in."""

    def __init__(self, order: EpochOrder, epoch: int, rows: int) -> None:
        self.order, self.epoch = order, epoch
        self.images = np.empty((rows, *order.image_shape), np.uint8)
        self.labels, self.seeds = np.empty(rows, np.int64), np.empty(rows, np.int64)
        self.ids = np.empty(rows, object)
        self.missing = np.ones(rows, bool)
        self.rejects: list[str | None] = [None] * rows

    def add(self, places: NDArray[np.int64], rows: Rows, shard: Shard) -> None:
        """Put rows of a shard to their places; the places of those that are rejected stay ``missing``."""
        _check_shapes(rows, self.order.image_shape, shard)
        there = np.arange(len(places)) if rows.kept is None else rows.kept
        for place, name, image in zip(places[there].tolist(), rows.ids, rows.images, strict=True):
            self.images[place], self.ids[place] = image, name
            self.seeds[place] = seed_of(self.order.seed, "image", self.epoch, name)
        self.labels[places[there]] = rows.labels
        self.missing[places[there]] = False
        for place, reject in zip(np.delete(places, there).tolist(), rows.rejects, strict=True):
            self.rejects[place] = json.dumps(reject)

    def replace(self, place: int, shard: int, row: int) -> None:
        """Fill a place with the next image of the training data, after row ``row`` of a shard, that can be decoded."""
        shards = self.order.source.shards
        for _ in range(min(TRIED, self.order.source.rows)):
            row += 1
            while row >= shards[shard].rows:
                shard, row = (shard + 1) % len(shards), 0
            rows = take_rows(self.order.shard(self.epoch, shard), np.array([row]))
            if rows.ids:
                reject = self.rejects[place]
                self.add(np.array([place]), rows, shards[shard])
                self.rejects[place] = reject
                return
        raise DataError(f"{TRIED} images after each other cannot be decoded; the first: {self.rejects[place]}")

    def table(self) -> pa.Table:
        return pa.table(
            {
                "image": pa.FixedShapeTensorArray.from_numpy_ndarray(self.images),
                "label": self.labels,
                "seed": self.seeds,
                "id": pa.array(self.ids, pa.string()),
                "reject": pa.array(self.rejects, pa.string()),
            }
        )
