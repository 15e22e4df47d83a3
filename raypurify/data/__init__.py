"""Image datasets by name or URL, read at random by runs of rows: no Ray, and no images held that were not asked for."""

from __future__ import annotations

import hashlib
import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

from raypurify.data import download
from raypurify.data.base import NO_LABEL, DataError, Found, Rows, Shard, Source
from raypurify.data.resolve import resolve

__all__ = ["NO_LABEL", "DataError", "Rows", "Shard", "Source", "open_source", "read_rows", "shape_of"]


def open_source(
    data: str, *, split: Literal["train", "test"], url: str | None = None, limit: int | None = None
) -> Source:
    """Resolve a dataset. Reads headers, footers and listings (and the small files of labels), no images.

    Args:
        data: ``digits`` (carried by scikit-learn), ``mnist`` or ``cifar10``, or a URL or path (its formats:
            :func:`resolve.resolve`). The named ones are taken from ``url``, else from the folder of that name in
            ``RAYPURIFY_DATA``, else from the cache ``RAYPURIFY_CACHE``, into which they are downloaded if need be.
        split: where the data have no split of their own, see :func:`resolve.resolve` and ``folder``.
        url: where the named dataset is, instead.
        limit: only the first so many rows.

    Raises:
        ValueError: an unknown split, or a limit under 1.
        DataError: no data there, of no known format, or damaged; the message names the file and the offset or row.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1 row, got {limit}")
    name, found = resolve(data, split, url)
    return Source(
        name=name,
        split=split,
        shards=_first_rows(found.shards, limit),
        image_shape=found.image_shape,
        classes=found.classes,
        fingerprint=_fingerprint(found, limit),
    )


def shape_of(source: Source) -> tuple[int, int, int]:
    """(H, W, C) of the images: what the files say, or else the first image's, which is read.

    Raises:
        DataError: the first image cannot be decoded.
    """
    if source.image_shape is not None:
        return source.image_shape
    first = read_rows(source.shards[0], 0, 1)
    if first.rejects:
        raise DataError(f"{first.rejects[0]['url']}: {first.rejects[0]['reason']}")
    height, width, channels = first.images[0].shape
    return height, width, channels


def read_rows(shard: Shard, start: int, stop: int) -> Rows:
    """Read and decode rows ``start`` to ``stop`` of a shard, counted from the shard's start.

    Raises:
        IndexError: the shard has no such rows.
        DataError: the file is damaged; a single image that cannot be decoded is in the result's ``rejects`` instead.
    """
    name = shard.extra.get("download")
    if name:
        # The driver downloaded to its own disk; another node of the cluster does so once for itself.
        path = Path(shard.url)
        download.fetch(name, folder=path.parent)
    rows: Rows = importlib.import_module(f"raypurify.data.{shard.format}").read(shard, start, stop)
    return rows


def _first_rows(shards: tuple[Shard, ...], limit: int | None) -> tuple[Shard, ...]:
    if limit is None:
        return shards
    kept = []
    for shard in shards:
        if limit <= 0:
            break
        kept.append(replace(shard, rows=min(shard.rows, limit)))
        limit -= shard.rows
    return tuple(kept)


def _fingerprint(found: Found, limit: int | None) -> str:
    shards = [(shard.key, shard.first, shard.rows) for shard in _first_rows(found.shards, limit)]
    return hashlib.sha256(json.dumps([shards, found.contents]).encode()).hexdigest()
