"""Sources: a dataset's split, and some of its rows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raypurify.data.base import Found, Origin, Shard, Source
from raypurify.data.names import resolve
from raypurify.data.reading import labels_of, rows_of_file
from raypurify.data.view import AS_STORED, View


def open_source(
    data: str,
    *,
    split: Literal["train", "test"],
    limit: int | None = None,
    view: View = AS_STORED,
) -> Source:
    """Resolve a dataset. Reads headers, footers and listings (and the small files of labels), no images.

    Args:
        data: ``digits`` (carried by scikit-learn), ``mnist`` or ``cifar10``, a URL or path, or a dotted path (see
            :func:`names.resolve`). The named ones are taken from the folder of that name in ``RAYPURIFY_DATA``, else
            from the cache ``RAYPURIFY_CACHE``, into which they are downloaded if need be.
        split: where the data have no split of their own, see :func:`names.resolve` and ``folder``.
        limit: only so many rows: the first, but of Parquet files without a split of their own, which may be sorted, of
            each class its share. The rows of a folder come in an order by a hash.
        view: how the images are shown. It is no part of the fingerprint.

    Raises:
        ValueError: an unknown split, a limit under 1, or images that are all smaller than the crop.
        DataError: no data there, of no known format, or damaged; the message names the file and the offset or row.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1 row, got {limit}")
    name, found = resolve(data, split)
    source = Source(
        name=name,
        split=split,
        shards=found.shards,
        image_shape=found.image_shape,
        view=AS_STORED,
        classes=found.classes,
        fingerprint="",
        origin=_origin(found, split),
        is_attacked=found.is_attacked,
        skipped=found.skipped,
    )
    if limit is not None and limit < source.rows:
        if found.picked:
            source = narrowed(source, spread(labels_of(source), limit, seed=0))
        else:
            source = replace(source, shards=_first_rows(source.shards, limit))
    rows = [(shard.key, *_row_range(shard)) for shard in source.shards]
    return shown(replace(source, fingerprint=_sha256([rows, found.contents])), view)


def shown(source: Source, view: View) -> Source:
    """A source whose images are as they are stored, in a view.

    Raises:
        ValueError: all images are smaller than the crop.
    """
    if not view.given:
        return source
    return replace(
        source,
        name=f"{source.name} ({view.told})",
        shards=tuple(replace(shard, view=view) for shard in source.shards),
        image_shape=None if source.image_shape is None else view.shape(source.image_shape),
        view=view,
    )


def in_colour(source: Source) -> Source:
    """A source whose grey images are shown as RGB."""
    return replace(source, shards=tuple(replace(shard, in_colour=True) for shard in source.shards))


def spread(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Pick ``count`` rows by the seed, of each class its share: their numbers, ascending.

    Args:
        labels: (N,) of all rows; N >= count.
    """
    by_class = np.lexsort((np.random.default_rng(seed).random(len(labels)), labels))
    return np.sort(by_class[np.arange(count) * len(labels) // max(count, 1)])


def narrowed(source: Source, rows: NDArray[np.int64]) -> Source:
    """Some of a source's rows, by their numbers, ascending."""
    shards, begin = [], 0
    for shard in source.shards:
        here = rows[slice(*np.searchsorted(rows, [begin, begin + shard.rows]))] - begin
        begin += shard.rows
        if len(here):
            picked = rows_of_file(shard, here).astype(np.uint32)
            shards.append(replace(shard, rows=len(here), picked=picked))
    return replace(source, shards=tuple(shards))


def _first_rows(shards: tuple[Shard, ...], limit: int) -> tuple[Shard, ...]:
    kept = []
    for shard in shards:
        if limit <= 0:
            break
        kept.append(replace(shard, rows=min(shard.rows, limit)))
        limit -= shard.rows
    return tuple(kept)


def _row_range(shard: Shard) -> tuple[Any, ...]:
    """What tells the rows of a shard from others of its file."""
    picked = () if shard.picked is None else (hashlib.sha256(shard.picked.tobytes()).hexdigest(),)
    return (shard.first, shard.rows, *picked)


def _origin(found: Found, split: str) -> Origin:
    rows = _sha256([[_row_range(shard) for shard in found.shards], found.contents])
    return Origin(files=_sha256(found.contents), rows=rows, split=split, split_by=found.split_by)


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
