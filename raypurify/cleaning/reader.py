"""The images of a unit, decoded, in the order of its plan."""

from __future__ import annotations

import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, islice, repeat
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypurify import images, storage
from raypurify.cleaning.entries import Entry, id_stem
from raypurify.cleaning.names import numbered, printable
from raypurify.cleaning.plan import UnitContent
from raypurify.data import files
from raypurify.data.base import DataError
from raypurify.data.columns import encoded_images
from raypurify.images import Picture
from raypurify.storage import archives
from raypurify.storage.archives import LARGEST

READS_AT_ONCE = 32
"""How many files are read ahead."""
BUFFER = 4 << 20
"""Bytes of a column that are fetched at a time of a row group whose rows are not all wanted."""
DECODED_AHEAD = 1 << 24
"""How many pixels are decoded ahead: 50 MB in RGB."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is decoded, and by how many threads."""

    max_pixels: int
    """An image of more pixels is rejected before it is decoded."""
    threads: int = 1
    killers: Mapping[str, str] = field(default_factory=dict)
    """Inputs that end the process that cleans them, by their ids or their entries', and how: they are rejected."""
    announce: Callable[[str], None] | None = None
    """Is told the id of each entry before it is opened, and of each image before it is read and decoded; nothing is
    done ahead then."""
    count: int | None = None
    """Items of a segment after which the others are left out; None: all."""

    def begin(self, name: str) -> None:
        """Announce what is read or decoded next."""
        if self.announce:
            self.announce(name)


@dataclass(kw_only=True)
class Item:
    """One image on its way from its entry to its output, or a tar's member that is no image.

    The reader sets what comes first: ``picture``, or ``stage`` and ``reason`` of a reject, or ``data`` and ``header``
    of a member that is no image. The cleaner sets the rest, of images.
    """

    entry: Entry
    id: str
    name: str
    """Its name in a tar: its own, its file's, or its row's."""
    position: int = 0
    """Its place among the items of its segment."""
    data: bytes | None = None
    """The encoded image, until it is decoded. The content of a member that is no image: of a link or a folder none."""
    header: tarfile.TarInfo | None = None
    """The name and kind of a member that is no image, and what it links to."""
    picture: Picture | None = None
    """The decoded image."""
    stage: str = ""
    """The stage that a reject failed in: "read", "decode", "purify" or "encode"; empty for others."""
    reason: str = ""
    """Why a reject failed."""
    cleaned: NDArray[np.uint8] | None = None
    """(H, W, C): the image as it is written."""
    measures: dict[str, Any] = field(default_factory=dict)
    """Columns of ``schema.MANIFEST``: what was measured between the image and its cleaned one, and their labels."""
    encoded: Future[tuple[bytes, tuple[str, ...]]] | None = None
    """The bytes of the cleaned image's file, and notes on them."""

    def reject(self, stage: str, reason: str) -> None:
        """Make the item a reject: note why it can't be cleaned, and let its pixels go."""
        self.stage, self.reason = stage, reason
        self.data = self.picture = None


@dataclass(frozen=True, kw_only=True)
class Segment:
    """What is read and written together of a unit: image files in a row, a range of a Parquet file's rows, or a tar."""

    entry: Entry
    """The entry that is read; the first one, of image files."""
    items: Iterator[Item]
    table: pa.Table | None = None
    """The range of rows, with all columns; None where it can't be read."""


def segments(unit: UnitContent, limits: Limits) -> Iterator[Segment]:
    """What a unit holds; each segment has to be read to its end before the next is asked for."""
    # Image files are read together, ranges of rows by their file, and a tar is alone.
    for _, same in groupby(unit.entries, key=lambda entry: "" if entry.kind == "image" else entry.url):
        entries = tuple(same)
        if entries[0].kind == "parquet":
            yield from _ranges_of_rows(entries, limits)
        else:
            items = _files(entries, limits) if entries[0].kind == "image" else _members(entries[0], limits)
            yield Segment(entry=entries[0], items=_decoded(items, limits))


def _files(entries: tuple[Entry, ...], limits: Limits) -> Iterator[Item]:
    wanted = [entry for entry in entries if entry.size <= LARGEST and entry.id not in limits.killers]
    # One at a time is read when it is asked for, so after it was announced.
    at_once = 1 if limits.announce else READS_AT_ONCE
    contents = storage.read_many((entry.url for entry in wanted), at_once=at_once)
    for entry in entries:
        item = Item(entry=entry, id=entry.id, name=entry.key)
        # A killer is rejected where it would be decoded.
        if entry.id not in limits.killers:
            if entry.size > LARGEST:
                item.reject("read", _too_large(entry.size))
            else:
                limits.begin(entry.id)
                _fill(item, next(contents)[1])
        yield item


def _fill(item: Item, content: bytes | Exception) -> None:
    """Give an item what was read of its file."""
    entry = item.entry
    if isinstance(content, Exception):
        if files.is_passing(content, entry.url):
            raise content
        item.reject("read", str(content).replace(f" {entry.url}", "").replace(f"{entry.url}: ", ""))
    elif entry.size not in (-1, len(content)):
        item.reject("read", _changed(entry, len(content)))
    else:
        item.data = content


def _too_large(size: int) -> str:
    return f"has {size} bytes; at most {LARGEST} are read of an image"


def _changed(entry: Entry, size: int) -> str:
    return f"changed since it was listed: {entry.size} bytes then, {size} now; --update takes it up"


def _check_size(opened: IO[bytes], entry: Entry) -> None:
    """Raise a DataError where an opened file is not of the size that was planned; else go back to its start."""
    if entry.size >= 0:
        size = opened.seek(0, os.SEEK_END)
        if size != entry.size:
            raise DataError(_changed(entry, size))
        opened.seek(0)


def _ranges_of_rows(entries: tuple[Entry, ...], limits: Limits) -> Iterator[Segment]:
    for entry, table in zip(entries, _tables(entries, limits), strict=True):
        values: Iterable[bytes | NDArray[np.uint8] | ValueError]
        try:
            if isinstance(table, ValueError):
                raise table
            values = encoded_images(table)
        except (ValueError, KeyError, pa.ArrowException) as error:
            # KeyError: two columns of images.
            values, table = repeat(ValueError(str(error))), None
        yield Segment(entry=entry, items=_decoded(_rows(entry, values), limits), table=table)


def _rows(entry: Entry, values: Iterable[bytes | NDArray[np.uint8] | ValueError]) -> Iterator[Item]:
    for number, value in zip(range(entry.first, entry.first + (entry.rows or 0)), values, strict=False):
        item = Item(entry=entry, id=f"{id_stem(entry.key)}#{number}", name=f"{number:09d}")
        if isinstance(value, bytes):
            item.data = value
        elif isinstance(value, ValueError):
            item.reject("read", str(value))
        else:
            item.picture = Picture(pixels=value)
        yield item


def _tables(entries: tuple[Entry, ...], limits: Limits) -> Iterator[pa.Table | ValueError]:
    """The rows of each range of a Parquet file, all columns, or why they can't be read; it is gone through once."""
    given = 0
    try:
        if left := [entry.id for entry in entries if entry.id not in limits.killers]:
            limits.begin(left[0])
        with files.open_file(entries[0].url) as opened:
            _check_size(opened, entries[0])
            for table in _slices(opened, entries, limits):
                yield table
                given += 1
    except (ValueError, OSError, pa.ArrowException) as error:
        if files.is_passing(error, entries[0].url):
            raise
        yield from [ValueError(str(error))] * (len(entries) - given)


def _slices(opened: IO[bytes], entries: tuple[Entry, ...], limits: Limits) -> Iterator[pa.Table | ValueError]:
    metadata = pq.read_metadata(opened)
    edges = np.cumsum([0, *(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))])
    begin, stop = entries[0].first, entries[-1].first + (entries[-1].rows or 0)
    if stop > metadata.num_rows:
        raise ValueError(f"expected {stop} rows at least, but it has {metadata.num_rows}")
    low, high = np.searchsorted(edges, begin, "right") - 1, np.searchsorted(edges, stop, "left")
    at = int(edges[low])
    is_all = begin < stop and at == begin and edges[high] == stop
    file = pq.ParquetFile(
        opened,
        metadata=metadata,
        # Where only a part of a group is wanted, nothing is fetched ahead.
        pre_buffer=bool(is_all) and not storage.is_local(entries[0].url),
        buffer_size=0 if is_all else BUFFER,
    )
    length = max(1, *(min(entry.rows or 0, 1024) for entry in entries))
    batches = file.iter_batches(length, row_groups=list(range(low, high)), use_threads=False)
    batch = next(batches, None)
    for entry in entries:
        if entry.id in limits.killers:
            yield ValueError(limits.killers[entry.id])
            continue
        limits.begin(entry.id)
        end, kept = entry.first + (entry.rows or 0), []
        while batch is not None:
            skipped, taken = max(entry.first - at, 0), min(end - at, len(batch))
            if skipped < taken:
                kept.append(batch.slice(skipped, taken - skipped))
            if at + len(batch) >= end:
                break
            at += len(batch)
            batch = next(batches, None)
        table = pa.Table.from_batches(kept, schema=file.schema_arrow)
        if len(table) != (entry.rows or 0):
            raise ValueError(f"expected {entry.rows} rows from row {entry.first} on, got {len(table)}: it is damaged")
        yield table


def _members(entry: Entry, limits: Limits) -> Iterator[Item]:
    """A tar's members; each name once: a second one of that name gets its number."""
    of_tar = Item(entry=entry, id=entry.id, name=entry.key)
    if entry.id in limits.killers:
        of_tar.reject("read", limits.killers[entry.id])
        yield of_tar
        return
    seen: dict[str, int] = {}
    limits.begin(entry.id)
    try:
        with files.open_file(entry.url) as opened:
            _check_size(opened, entry)
            with archives.opened(opened) as tar:
                while (member := tar.next()) is not None:
                    yield _member(tar, member, entry, seen, limits)
                if tar.damaged_at is not None:
                    raise DataError(f"the tar is damaged: what begins at its byte {tar.damaged_at} is of no member")
                if not seen and tar.offset > tarfile.RECORDSIZE:
                    raise DataError(f"the tar is damaged: all of its {tar.offset} bytes are zeros")
    except Exception as error:
        # A damaged archive makes tarfile raise also what it does not document: TypeError, IndexError, ...
        if files.is_passing(error, entry.url):
            raise
        reason = str(error) if isinstance(error, DataError) else f"the tar can't be read to its end: {error}"
        of_tar.reject("read", reason)
        yield of_tar


def _member(tar: archives.Tar, member: tarfile.TarInfo, entry: Entry, seen: dict[str, int], limits: Limits) -> Item:
    name = printable(member.name)
    item = Item(entry=entry, id=f"{id_stem(entry.key)}#{numbered(name, seen)}", name=name)
    reason = _refusal(member, seen)
    if member.isreg() and member.size > LARGEST:
        reason = _too_large(member.size)
    if reason:
        item.reject("read", reason)
        return item
    if not member.isreg() or not images.is_named_as_image(name):
        item.header = _without_owner(member)
    if item.id not in limits.killers:
        limits.begin(item.id)
        item.data = cast(IO[bytes], tar.extractfile(member)).read() if member.isreg() else b""
    return item


def _refusal(member: tarfile.TarInfo, seen: Mapping[str, int]) -> str | None:
    """Why a member of a known size is neither read nor passed on.

    Args:
        seen: has the names of the members before it.
    """
    if member.issym() or member.islnk():
        # What an image becomes has another name, and may be a reject.
        if images.is_named_as_image(printable(member.name)) or images.is_named_as_image(printable(member.linkname)):
            return f"is a link to {member.linkname}; links in a tar are not followed"
        is_lost = member.islnk() and printable(member.linkname) not in seen
        return f"is a link to {member.linkname}, which is not in the tar" if is_lost else None
    is_kept = member.isreg() or member.isdir()
    return None if is_kept else f"is no file, folder or link, but of the type {member.type!r}"


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A member's header in the cleaned tar, without owner, times and permissions."""
    header = tarfile.TarInfo(printable(member.name))
    header.type = tarfile.REGTYPE if member.isreg() else member.type
    header.linkname = "" if member.isreg() else printable(member.linkname)
    header.mode = 0o755 if member.isdir() else header.mode
    return header


def _decoded(items: Iterable[Item], limits: Limits) -> Iterator[Item]:
    """Decode ahead in threads, in order, within a budget of pixels."""
    with ThreadPoolExecutor(limits.threads) as pool:
        ahead: deque[tuple[int, Future[Item]]] = deque()
        pixels = 0
        for position, item in enumerate(islice(items, limits.count)):
            item.position = position
            if limits.announce:
                yield _decode(item, limits)
                continue
            is_left = item.data is None or item.header is not None or item.id in limits.killers
            size = 0 if is_left else images.pixels_of(cast(bytes, item.data))
            while ahead and (pixels + size > DECODED_AHEAD or len(ahead) >= 2 * limits.threads):
                before, future = ahead.popleft()
                pixels -= before
                yield future.result()
            ahead.append((size, pool.submit(_decode, item, limits)))
            pixels += size
        for _, future in ahead:
            yield future.result()


def _decode(item: Item, limits: Limits) -> Item:
    """The item with its picture in place of its data, or as a reject; a member that is no image stays as it is."""
    if item.stage:
        return item
    if item.id in limits.killers:
        item.reject("decode", limits.killers[item.id])
    elif item.header is None:
        limits.begin(item.id)
        try:
            if item.picture is None:
                item.picture = images.read_picture(cast(bytes, item.data), max_pixels=limits.max_pixels)
                item.data = None
            height, width = item.picture.pixels.shape[:2]
            if not 0 < height * width <= limits.max_pixels:
                raise ValueError(f"has {height}x{width} pixels; expected 1 to {limits.max_pixels}")
        except ValueError as error:
            item.reject("decode", str(error))
    return item
