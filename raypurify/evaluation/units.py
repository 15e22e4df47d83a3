"""Units: a labelled dataset cut into fixed runs of rows, which are done and written together."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from raypurify import runs
from raypurify.data import Rows, Shape, Shard, Source, read_rows

LARGEST = 500
"""Rows of a unit at most, on CPUs: what is written together, and done again when it was cut off."""
SMALLEST = 16
"""Rows of a unit at least: with fewer, its files and its way through Ray would take longer than its work."""
UNITS = 16
"""Units of a small dataset: several actors share it evenly, and progress shows while they work."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows ``start`` to ``stop`` of a shard."""

    shard: Shard
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A fixed run of rows, or one of several parts of the work on it: each part makes other tables of all the rows."""

    name: str
    pieces: tuple[Piece, ...]
    part: int = 0
    """The part's number."""
    parts: int = 1
    """How many parts the work has."""

    @property
    def images(self) -> int:
        """How many of its images the unit counts: a part counts its share of them."""
        return self.share(sum(piece.stop - piece.start for piece in self.pieces))

    def share(self, count: int) -> int:
        """What a part counts of a ``count`` of the whole unit. The shares of all parts add up to it."""
        return count * (self.part + 1) // self.parts - count * self.part // self.parts

    def read(self) -> list[Rows]:
        """The unit's images, decoded."""
        return [read_rows(piece.shard, piece.start, piece.stop) for piece in self.pieces]


def rows_of_unit(
    output: str, rows: int, *, coupled: int = 0, whole: int = 0, overwrite: bool = False, largest: int = LARGEST
) -> int:
    """How many rows the units of a run have: those of the run that the output holds, or what follows from the dataset.

    It follows from what is computed, and on GPUs from the pool too. The names of files follow from it.

    Args:
        output: URL of the run's folder, whose identity may hold ``unit``.
        rows: of the dataset.
        coupled: images of a batch, where an attack's result depends on the whole of it; else 0.
        whole: images that a GPU is to have at once, where none is coupled; 0 on CPUs.
        overwrite: the run that the output holds does not count.
        largest: rows of a unit at most, on CPUs.
    """
    begun: int | None = None if overwrite else runs.identity_of(output).get("unit")
    return begun or max(min(max(-(-rows // UNITS), SMALLEST, coupled), largest), 0 if coupled else whole)


def units_of(source: Source, rows: int, prefix: str = "") -> list[Unit]:
    """The dataset cut into units of ``rows`` rows, in order; a unit may span shards. Names begin with ``prefix``."""
    pieces: dict[int, list[Piece]] = defaultdict(list)
    begin = 0
    for shard in source.shards:
        stops = range(rows - begin % rows, shard.rows, rows)
        for start, stop in pairwise([0, *stops, shard.rows] if shard.rows else []):
            pieces[(begin + start) // rows].append(_with_own_picks(Piece(shard=shard, start=start, stop=stop)))
        begin += shard.rows
    return [Unit(name=f"{prefix}{number:06d}", pieces=tuple(found)) for number, found in pieces.items()]


def _with_own_picks(piece: Piece) -> Piece:
    """The piece with no more of its shard's picked rows than its own: each unit is sent by itself."""
    if piece.shard.picked is None:
        return piece
    picked = piece.shard.picked[piece.start : piece.stop]
    return Piece(shard=dataclasses.replace(piece.shard, rows=len(picked), picked=picked), start=0, stop=len(picked))


BatchSize = Callable[[Shape], int]
"""How many images of a shape (H, W, C) go through networks at once."""


def batches_of(pieces: Sequence[Rows], size: BatchSize) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """Batches of images of one shape: ids, (N, H, W, C) uint8, labels (N,)."""
    by_shape: dict[tuple[int, ...], list[tuple[str, np.ndarray, int]]] = {}
    for piece in pieces:
        for name, image, label in zip(piece.ids, piece.images, piece.labels, strict=True):
            by_shape.setdefault(image.shape, []).append((name, image, int(label)))
    for shape, rows in by_shape.items():
        count = size((shape[0], shape[1], shape[2]))
        for start in range(0, len(rows), count):
            ids, images, labels = zip(*rows[start : start + count], strict=True)
            yield list(ids), np.stack(images), np.array(labels, dtype=np.int64)
