"""The images of a unit, decoded, in the order of its plan."""

from __future__ import annotations

import errno
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
from raypurify.cleaning import tars
from raypurify.cleaning.plan import Entry, UnitContent, id_stem
from raypurify.data import files
from raypurify.data.base import DataError
from raypurify.data.columns import encoded_images
from raypurify.images import Picture
from raypurify.storage import retries
from raypurify.storage.retries import RefusedError, UnavailableError

READS_AT_ONCE = 32
"""How many files are read ahead."""
OUTAGES = (RefusedError, UnavailableError, files.StoreError)
"""What a store says that says nothing of the file: no reason to reject it, but on the web."""
TROUBLE = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
BUFFER = 4 << 20
"""Bytes of a column that are fetched at a time of a row group whose rows are not all wanted."""
TAIL = 1 << 16
"""Bytes that are read first of a Parquet file's end: most footers are shorter."""
SHORTEST_PARQUET = 12
"""Bytes of the shortest Parquet file: two marks and the length of its footer."""
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
    """Items of a section after which the others are left out; None: all."""


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
    """Its place among the items of its section."""
    data: bytes | None = None
    """The encoded image, until it is decoded. The content of a member that is no image; None for a link or a folder."""
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

    @property
    def waits(self) -> bool:
        """Whether the image has yet to be purified."""
        return self.picture is not None and self.encoded is None

    def reject(self, stage: str, reason: str) -> None:
        """Make the item a reject: note why it can't be cleaned, and let its pixels go."""
        self.stage, self.reason = stage, reason
        self.data = self.picture = None


@dataclass(frozen=True, kw_only=True)
class Section:
    """What is read and written together of a unit: image files in a row, a range of a Parquet file's rows, or a tar."""

    entry: Entry
    """The entry that is read; the first one, of image files."""
    items: Iterator[Item]
    table: pa.Table | None = None
    """The range of rows, with all columns; None where it can't be read."""


def sections(unit: UnitContent, limits: Limits) -> Iterator[Section]:
    """What a unit holds; each section has to be read to its end before the next is asked for."""
    # Image files are read together, ranges of rows by their file, and a tar is alone.
    for _, same in groupby(unit.entries, key=lambda entry: "" if entry.kind == "image" else entry.url):
        entries = tuple(same)
        if entries[0].kind == "image":
            yield Section(entry=entries[0], items=_decoded(_files(entries, limits), limits))
        elif entries[0].kind == "tar":
            yield Section(entry=entries[0], items=_decoded(_members(entries[0], limits), limits))
        else:
            yield from _ranges_of_rows(entries, limits)


def is_passing(error: BaseException, url: str) -> bool:
    """Whether an error, or what it came from, says nothing of the file: its store or this machine is in trouble."""
    if isinstance(error, MemoryError) or retries.is_transient(error):
        return True
    if isinstance(error, OUTAGES) and not storage.is_web(url):
        return True
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "errno", None) not in TROUBLE:
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def parquet_footer(url: str, size: int) -> pq.FileMetaData | None:
    """The footer of a file, or None where none can be read or made out: its reader will say why.

    What is read and what is parsed are apart, so that a network's failure is not taken for a damaged file.

    Args:
        size: of the file in bytes; -1 where that is not known.

    Raises:
        DataError: the store refuses or does not answer, or this machine is in trouble; for a link, its reader says so.
    """
    try:
        return pq.read_metadata(pa.BufferReader(_tail(url, size)))
    except DataError as error:
        if is_passing(error, url):
            raise
        return None
    except (pa.ArrowException, OSError):
        return None


def _tail(url: str, size: int) -> bytes:
    """The end of a file, as far as its footer reaches."""
    if size < 0:
        found = files.stat(url)
        size = found.size if found else 0
    if size < SHORTEST_PARQUET:
        return b""
    tail = files.read_range(url, max(0, size - TAIL), size)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    return files.read_range(url, size - length, size) if len(tail) < length <= size else tail


def _files(entries: tuple[Entry, ...], limits: Limits) -> Iterator[Item]:
    wanted = [entry for entry in entries if entry.size <= tars.LARGEST and entry.id not in limits.killers]
    # One at a time is read when it is asked for, so after it was announced.
    at_once = 1 if limits.announce else READS_AT_ONCE
    contents = storage.read_many((entry.url for entry in wanted), at_once=at_once)
    for entry in entries:
        item = Item(entry=entry, id=id_stem(entry.key), name=entry.key)
        if entry.size > tars.LARGEST and entry.id not in limits.killers:
            item.reject("read", _too_large(entry.size))
        elif entry.id not in limits.killers:
            if limits.announce:
                limits.announce(entry.id)
            _fill(item, next(contents)[1])
        yield item


def _fill(item: Item, content: bytes | Exception) -> None:
    """Give an item what was read of its file."""
    entry = item.entry
    if isinstance(content, Exception):
        if is_passing(content, entry.url):
            raise content
        item.reject("read", str(content).replace(f" {entry.url}", "").replace(f"{entry.url}: ", ""))
    elif entry.size >= 0 and len(content) != entry.size:
        item.reject("read", changed(entry, len(content)))
    else:
        item.data = content


def _too_large(size: int) -> str:
    return f"has {size} bytes; at most {tars.LARGEST} are read of an image"


def changed(entry: Entry, size: int) -> str:
    """The reason to reject a file that is not the one that was planned."""
    return f"changed since it was listed: {entry.size} bytes then, {size} now; --update takes it up"


def _check_size(opened: IO[bytes], entry: Entry) -> None:
    """Raise a DataError where an opened file is not of the size that was planned; else go back to its start."""
    if entry.size >= 0:
        size = opened.seek(0, os.SEEK_END)
        if size != entry.size:
            raise DataError(changed(entry, size))
        opened.seek(0)


def _ranges_of_rows(entries: tuple[Entry, ...], limits: Limits) -> Iterator[Section]:
    for entry, table in zip(entries, _tables(entries, limits), strict=True):
        values: Iterable[bytes | NDArray[np.uint8] | ValueError]
        try:
            values = repeat(table) if isinstance(table, ValueError) else encoded_images(table)
        except (ValueError, KeyError, pa.ArrowException) as error:
            # KeyError: two columns of images.
            table = ValueError(str(error))
            values = repeat(table)
        rest = None if isinstance(table, ValueError) else table
        yield Section(entry=entry, items=_decoded(_rows(entry, values), limits), table=rest)


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
        if limits.announce and (left := [entry.id for entry in entries if entry.id not in limits.killers]):
            limits.announce(left[0])
        with files.open_file(entries[0].url) as opened:
            _check_size(opened, entries[0])
            for table in _slices(opened, entries, limits):
                yield table
                given += 1
    except (ValueError, OSError, pa.ArrowException) as error:
        if is_passing(error, entries[0].url):
            raise
        yield from [ValueError(str(error))] * (len(entries) - given)


def _slices(opened: IO[bytes], entries: tuple[Entry, ...], limits: Limits) -> Iterator[pa.Table | ValueError]:
    metadata = pq.read_metadata(opened)
    ends = np.cumsum([metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)])
    stop = entries[-1].first + (entries[-1].rows or 0)
    if stop > metadata.num_rows:
        raise ValueError(f"expected {stop} rows at least, but it has {metadata.num_rows}")
    begin = entries[0].first
    low, high = np.searchsorted(ends, begin, "right"), np.searchsorted(ends, stop, "left")
    groups = list(range(low, high + 1)) if begin < stop else []
    at = int(ends[groups[0] - 1]) if groups and groups[0] else 0
    is_all = at == begin and groups and ends[groups[-1]] == stop
    file = pq.ParquetFile(
        opened,
        metadata=metadata,
        # Where only a part of a group is wanted, nothing is fetched ahead.
        pre_buffer=bool(is_all) and not storage.is_local(entries[0].url),
        buffer_size=0 if is_all else BUFFER,
    )
    length = max(1, *(min(entry.rows or 0, 1024) for entry in entries))
    batches = file.iter_batches(length, row_groups=groups, use_threads=False)
    batch = next(batches, None)
    for entry in entries:
        if entry.id in limits.killers:
            yield ValueError(limits.killers[entry.id])
            continue
        if limits.announce:
            limits.announce(entry.id)
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
    of_tar = Item(entry=entry, id=id_stem(entry.key), name=entry.key)
    if entry.id in limits.killers:
        of_tar.reject("read", limits.killers[entry.id])
        yield of_tar
        return
    if limits.announce:
        limits.announce(entry.id)
    seen: dict[str, int] = {}
    try:
        with files.open_file(entry.url) as opened:
            _check_size(opened, entry)
            with tars.opened(opened) as tar:
                while (member := tar.next()) is not None:
                    yield _member(tar, member, entry, seen, limits)
                if tar.damaged_at is not None:
                    raise DataError(f"the tar is damaged: what begins at its byte {tar.damaged_at} is of no member")
                if not seen and tar.offset > tarfile.RECORDSIZE:
                    raise DataError(f"the tar is damaged: all of its {tar.offset} bytes are zeros")
    except Exception as error:
        # A damaged archive makes tarfile raise also what it does not document: TypeError, IndexError, ...
        if is_passing(error, entry.url):
            raise
        reason = str(error) if isinstance(error, DataError) else f"the tar can't be read to its end: {error}"
        of_tar.reject("read", reason)
        yield of_tar


def _member(tar: tars.Tar, member: tarfile.TarInfo, entry: Entry, seen: dict[str, int], limits: Limits) -> Item:
    name = tars.printable(member.name)
    item = Item(entry=entry, id=f"{id_stem(entry.key)}#{tars.numbered(name, seen)}", name=name)
    reason = tars.refusal(member, seen)
    if member.isreg() and member.size > tars.LARGEST:
        reason = _too_large(member.size)
    if reason:
        item.reject("read", reason)
        return item
    if not member.isreg() or not images.is_named_as_image(name):
        item.header = tars.without_owner(member)
    if item.id not in limits.killers:
        if limits.announce:
            limits.announce(item.id)
        item.data = cast(IO[bytes], tar.extractfile(member)).read() if member.isreg() else b""
    return item


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
        return item
    if item.header:
        return item
    if limits.announce:
        limits.announce(item.id)
    if item.picture is not None:
        height, width = item.picture.pixels.shape[:2]
        if not 0 < height * width <= limits.max_pixels:
            item.reject("decode", f"has {height}x{width} pixels; expected 1 to {limits.max_pixels}")
        return item
    try:
        item.picture = images.read_picture(cast(bytes, item.data), max_pixels=limits.max_pixels)
        item.data = None
    except ValueError as error:
        item.reject("decode", str(error))
    return item
