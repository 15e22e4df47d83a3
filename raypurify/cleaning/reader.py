"""The images of a unit, decoded, in the order of its plan."""

from __future__ import annotations

import errno
import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypurify import images, storage
from raypurify.cleaning import tars
from raypurify.cleaning.base import Entry, Unit
from raypurify.data import files
from raypurify.data.base import DataError
from raypurify.data.columns import encoded_images
from raypurify.images import Picture
from raypurify.storage import retries
from raypurify.storage.retries import RefusedError, UnavailableError

READS_AT_ONCE = 32
"""Files that are read ahead."""
OUTAGES = (RefusedError, UnavailableError, files.StoreError)
"""What a store says that says nothing of the file: no reason to reject it, but on the web."""
TROUBLE = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
LARGEST_FILE = tars.LARGEST
"""Bytes of an image file, or of a tar's member, that is read: it is held in memory."""
BUFFER = 4 << 20
"""Bytes of a column that are fetched at a time of a row group whose rows are not all wanted."""
DECODED_AHEAD = 1 << 24
"""Pixels that are decoded ahead: 50 MB in RGB."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is decoded, and by how many threads."""

    max_pixels: int
    """Images of more are rejected before they are decoded."""
    threads: int = 1
    killers: Mapping[str, str] = field(default_factory=dict)
    """Inputs that end the process that cleans them, by their ids or their entries', and how: they are rejected."""
    announce: Callable[[str], None] | None = None
    """Is told the id of each entry before it is opened, and of each image before it is read and decoded; nothing is
    done ahead then."""
    count: int | None = None
    """Images of a group after which the others are left out; None: all."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """An image before it is decoded: its bytes, its pixels where it came without an encoding, or why there are none."""

    id: str
    name: str
    data: bytes | None = None
    picture: Picture | None = None
    reason: str | None = None
    header: tarfile.TarInfo | None = None
    """Of a tar's member that is no image: as it is passed on."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """An image to be cleaned, the reason why it can't be, or a tar's member that is no image."""

    id: str
    name: str
    """In a tar: its own, its file's, or its row's."""
    position: int
    """Among the images of its entry."""
    picture: Picture | None = None
    stage: str = ""
    """Of a reject: "read" or "decode"."""
    reason: str = ""
    other: bytes | None = None
    """What a member that is no image holds; a link or a folder holds nothing."""
    header: tarfile.TarInfo | None = None
    """Of such a member: its name, kind, and what it links to."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """What is read together: image files in a row, a run of a Parquet file, or a tar."""

    entries: tuple[Entry, ...]
    inputs: Iterator[Input]
    table: pa.Table | None = None
    """The run of a Parquet file, with all its columns."""


def groups(unit: Unit, limits: Limits) -> Iterator[Group]:
    """What a unit holds; each group has to be read to its end before the next is asked for.

    Args:
        unit: planned inputs.
        limits: of what is decoded.
    """
    for kind, run in groupby(unit.entries, key=lambda entry: entry.kind):
        if kind == "image":
            entries = tuple(run)
            yield Group(entries=entries, inputs=_decoded(_files(entries, limits), limits))
            continue
        if kind == "tar":
            for entry in run:
                yield Group(entries=(entry,), inputs=_decoded(_members(entry, limits), limits))
        else:
            for _, same in groupby(run, key=lambda entry: entry.url):
                yield from _runs_of_rows(tuple(same), limits)


def is_passing(error: BaseException, url: str) -> bool:
    """Whether an error, or what it came from, says nothing of the file: its store or this machine is in trouble."""
    if retries.is_transient(error) or (isinstance(error, OUTAGES) and not storage.is_web(url)):
        return True
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "errno", None) not in TROUBLE:
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def _files(entries: tuple[Entry, ...], limits: Limits) -> Iterator[Encoded]:
    wanted = [entry for entry in entries if entry.size <= LARGEST_FILE and entry.id not in limits.killers]

    def one_by_one(announce: Callable[[str], None]) -> Iterator[tuple[int, bytes | Exception]]:
        for entry in wanted:
            announce(entry.id)
            yield from storage.read_many([entry.url])

    urls = (entry.url for entry in wanted)
    contents = one_by_one(limits.announce) if limits.announce else storage.read_many(urls, at_once=READS_AT_ONCE)
    for entry in entries:
        if entry.id in limits.killers:
            yield Encoded(id=entry.id_stem, name=entry.key)
        elif entry.size > LARGEST_FILE:
            yield Encoded(id=entry.id_stem, name=entry.key, reason=_too_large(entry.size))
        else:
            yield _file(entry, next(contents)[1])


def _file(entry: Entry, data: bytes | Exception) -> Encoded:
    if isinstance(data, Exception):
        if is_passing(data, entry.url):
            raise data
        reason = str(data).replace(f" {entry.url}", "").replace(f"{entry.url}: ", "")
    elif entry.size >= 0 and len(data) != entry.size:
        reason = changed(entry, len(data))
    else:
        return Encoded(id=entry.id_stem, name=entry.key, data=data)
    return Encoded(id=entry.id_stem, name=entry.key, reason=reason)


def _too_large(size: int) -> str:
    return f"has {size} bytes; at most {LARGEST_FILE} are read of an image"


def changed(entry: Entry, size: int) -> str:
    """The reason to reject a file that is not the one that was planned."""
    return f"changed since it was listed: {entry.size} bytes then, {size} now; --update takes it up"


def _check_size(opened: IO[bytes], entry: Entry) -> None:
    """Check that an opened file is of the size that was planned, and go back to its start.

    Raises:
        DataError: it is not.
    """
    if entry.size >= 0:
        size = opened.seek(0, os.SEEK_END)
        if size != entry.size:
            raise DataError(changed(entry, size))
        opened.seek(0)


def _runs_of_rows(entries: tuple[Entry, ...], limits: Limits) -> Iterator[Group]:
    for entry, table in zip(entries, _tables(entries, limits), strict=True):
        names = [f"{entry.first + row:09d}" for row in range(entry.rows or 0)]
        ids = [f"{entry.id_stem}#{int(name)}" for name in names]
        values: Iterable[bytes | NDArray[np.uint8] | ValueError]
        try:
            values = [table] * len(ids) if isinstance(table, ValueError) else encoded_images(table)
        except (ValueError, KeyError, pa.ArrowException) as error:
            # KeyError: two columns of images.
            table = ValueError(str(error))
            values = [table] * len(ids)
        rows = (_row(i, name, value) for i, name, value in zip(ids, names, values, strict=True))
        rest = None if isinstance(table, ValueError) else table
        yield Group(entries=(entry,), inputs=_decoded(rows, limits), table=rest)


def _row(id: str, name: str, value: bytes | NDArray[np.uint8] | ValueError) -> Encoded:
    if isinstance(value, bytes):
        return Encoded(id=id, name=name, data=value)
    if isinstance(value, ValueError):
        return Encoded(id=id, name=name, reason=str(value))
    return Encoded(id=id, name=name, picture=Picture(pixels=value))


def _tables(entries: tuple[Entry, ...], limits: Limits) -> Iterator[pa.Table | ValueError]:
    """The rows of each run of a Parquet file, all columns, or why they can't be read; it is gone through once."""
    given = 0
    try:
        if limits.announce and (left := [entry.id for entry in entries if entry.id not in limits.killers]):
            limits.announce(left[0])
        with files.open_file(entries[0].url) as opened:
            _check_size(opened, entries[0])
            for table in _slices(opened, entries, limits):
                yield table
                given += 1
    except MemoryError:
        raise
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


def _members(entry: Entry, limits: Limits) -> Iterator[Encoded]:
    """A tar's members; each name once: a second one of that name gets its number."""
    if entry.id in limits.killers:
        yield Encoded(id=entry.id_stem, name=entry.key, reason=limits.killers[entry.id])
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
    except MemoryError:
        raise
    except Exception as error:
        # A damaged archive makes tarfile raise also what it does not document: TypeError, IndexError, ...
        if is_passing(error, entry.url):
            raise
        reason = str(error) if isinstance(error, DataError) else f"the tar can't be read to its end: {error}"
        yield Encoded(id=entry.id_stem, name=entry.key, reason=reason)


def _member(tar: tars.Tar, member: tarfile.TarInfo, entry: Entry, seen: dict[str, int], limits: Limits) -> Encoded:
    name, target = (_printable(text) for text in (member.name, member.linkname))
    id = f"{entry.id_stem}#{_once(name, seen)}"
    if reason := _refusal(member, name, target, seen):
        return Encoded(id=id, name=name, reason=reason)
    header = None if member.isreg() and images.is_named_as_image(name) else _header(member, name, target)
    if id in limits.killers:
        return Encoded(id=id, name=name, header=header)
    if limits.announce:
        limits.announce(id)
    data = cast(IO[bytes], tar.extractfile(member)).read() if member.isreg() else b""
    return Encoded(id=id, name=name, data=data, header=header)


def _once(name: str, seen: dict[str, int]) -> str:
    """A member's name, with its number behind it where one of that name has been; counts it in ``seen``."""
    number = seen.get(name, 0) + 1
    while number > 1 and f"{name}~{number}" in seen:
        number += 1
    seen[name] = number
    if number == 1:
        return name
    seen[f"{name}~{number}"] = 1
    return f"{name}~{number}"


def _refusal(member: tarfile.TarInfo, name: str, target: str, seen: Mapping[str, int]) -> str | None:
    """Why a member is neither read nor passed on."""
    if member.issym() or member.islnk():
        # What an image becomes has another name, and may be a reject.
        if images.is_named_as_image(name) or images.is_named_as_image(target):
            return f"is a link to {member.linkname}; links in a tar are not followed"
        is_lost = member.islnk() and target not in seen
        return f"is a link to {member.linkname}, which is not in the tar" if is_lost else None
    if member.isreg():
        return _too_large(member.size) if member.size > LARGEST_FILE else None
    return None if member.isdir() else f"is no file, folder or link, but of the type {member.type!r}"


def _header(member: tarfile.TarInfo, name: str, target: str) -> tarfile.TarInfo:
    """A member's header in the cleaned tar, without owner, times and permissions."""
    header = tarfile.TarInfo(name)
    header.type = tarfile.REGTYPE if member.isreg() else member.type
    header.linkname = "" if member.isreg() else target
    header.mode = 0o755 if member.isdir() else header.mode
    return header


def _printable(name: str) -> str:
    """A name in another encoding than UTF-8 comes with bytes that no text can hold."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _decoded(encoded: Iterable[Encoded], limits: Limits) -> Iterator[Input]:
    """Decode ahead in threads, in order, within a budget of pixels."""
    with ThreadPoolExecutor(limits.threads) as pool:
        ahead: deque[tuple[int, Future[Input]]] = deque()
        pixels = 0
        for position, item in enumerate(islice(encoded, limits.count)):
            if limits.announce:
                yield _decode(position, item, limits)
                continue
            size = _pixels(item, limits)
            while ahead and (pixels + size > DECODED_AHEAD or len(ahead) >= 2 * limits.threads):
                before, future = ahead.popleft()
                pixels -= before
                yield future.result()
            ahead.append((size, pool.submit(_decode, position, item, limits)))
            pixels += size
        for _, future in ahead:
            yield future.result()


def _pixels(item: Encoded, limits: Limits) -> int:
    """Pixels that an image says it has, from its header."""
    if item.data is None or item.header or item.id in limits.killers:
        return 0
    return images.pixels_of(item.data)


def _decode(position: int, item: Encoded, limits: Limits) -> Input:
    about: dict[str, Any] = {"id": item.id, "name": item.name, "position": position}
    if item.reason is not None:
        return Input(**about, stage="read", reason=item.reason)
    if item.id in limits.killers:
        return Input(**about, stage="decode", reason=limits.killers[item.id])
    if item.header:
        return Input(**about, other=item.data, header=item.header)
    if limits.announce:
        limits.announce(item.id)
    if item.picture is not None:
        height, width = item.picture.pixels.shape[:2]
        if not 0 < height * width <= limits.max_pixels:
            reason = f"has {height}x{width} pixels; expected 1 to {limits.max_pixels}"
            return Input(**about, stage="decode", reason=reason)
        return Input(**about, picture=item.picture)
    try:
        return Input(**about, picture=images.read_picture(cast(bytes, item.data), max_pixels=limits.max_pixels))
    except ValueError as error:
        return Input(**about, stage="decode", reason=str(error))
