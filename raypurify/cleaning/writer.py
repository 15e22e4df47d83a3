"""Where cleaned images go: files of their own, Parquet, or tars. Each output is there whole, or not at all."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import IO, Literal, cast

import pyarrow as pa

from raypurify import images, storage
from raypurify.cleaning.names import inside
from raypurify.cleaning.reader import Item, Segment
from raypurify.data.columns import image_column
from raypurify.images import Picture
from raypurify.runs import schema
from raypurify.storage.bounded import SPOOLED, TableSpool

Shards = Literal["mirror", "parquet", "webdataset"]
Check = Callable[[], None]
"""Raises where another attempt may hold the output; called before each write and each removal."""
WRITES_AT_ONCE = 16


class Sink:
    """Takes the items of a segment, or of a unit, in their order."""

    def put(self, item: Item, data: bytes) -> tuple[str, int | None]:
        """Take a cleaned image's file; says the URL that it will be at, and its row there."""
        raise NotImplementedError

    def reject(self, item: Item) -> None:
        """Leave a rejected image out."""

    def pass_on(self, item: Item) -> None:
        """Take a tar's member that is no image, if it belongs in the output."""

    def close(self) -> None:
        """Publish what was put; returns when all of it is there."""
        raise NotImplementedError


def mirror(folder: str, segment: Segment, format: str, check_lease: Check) -> Sink:
    """What mirrors a segment of the input, under the folder at a URL."""
    if segment.entry.kind == "image":
        return FileSink(folder, format, check_lease)
    url = storage.join(folder, segment.entry.output)
    if segment.entry.kind == "tar":
        return TarSink(url, format, check_lease)
    return RowSink(url, segment.table, check_lease)


def shard(folder: str, unit: str, shards: Shards, format: str, check_lease: Check) -> Sink | None:
    """What holds all images of the unit of this name, where shards are asked for; else as :func:`mirror`."""
    if shards == "parquet":
        return ShardSink(storage.join(folder, f"{unit}.parquet"), check_lease)
    if shards == "webdataset":
        return TarShardSink(storage.join(folder, f"{unit}.tar"), format, check_lease)
    return None


class _Held:
    """A file that can be read while the lease is held. What copies it reads nothing last, right before it publishes."""

    def __init__(self, file: IO[bytes], check_lease: Check) -> None:
        self.file, self.check_lease, self.seek = file, check_lease, file.seek

    def read(self, size: int = -1) -> bytes:
        self.check_lease()
        return self.file.read(size)


def _publish(url: str, file: IO[bytes] | None, check_lease: Check, content_type: str | None = None) -> None:
    """Write a file; None: remove what a former version has left."""
    check_lease()
    if file:
        storage.write_file(url, cast(IO[bytes], _Held(file, check_lease)), content_type)
    else:
        storage.remove(url)


class FileSink(Sink):
    """Each image in a file of its own, under its input's name."""

    def __init__(self, folder: str, format: str, check_lease: Check) -> None:
        self.folder, self.check_lease = folder, check_lease
        self.content_type = images.FORMATS[format].content_type
        self.pool = ThreadPoolExecutor(WRITES_AT_ONCE)
        self.writes: list[Future[None]] = []

    def put(self, item: Item, data: bytes) -> tuple[str, int | None]:
        url = storage.join(self.folder, item.entry.output)
        if len(self.writes) >= 4 * WRITES_AT_ONCE:
            self.writes.pop(0).result()
        self.writes.append(self.pool.submit(self._write, url, data))
        return url, None

    def _write(self, url: str, data: bytes) -> None:
        self.check_lease()
        storage.write_bytes(url, data, content_type=self.content_type)

    def reject(self, item: Item) -> None:
        """Remove what a former version of the image has left."""
        self.check_lease()
        storage.remove(storage.join(self.folder, item.entry.output))

    def close(self) -> None:
        with self.pool:
            for write in self.writes:
                write.result()


class RowSink(Sink):
    """A range of a Parquet file's rows with its image column replaced; rows that were rejected are left out."""

    def __init__(self, url: str, table: pa.Table | None, check_lease: Check) -> None:
        self.url, self.table, self.check_lease = url, table, check_lease
        self.kept: list[int] = []
        self.images: list[bytes] = []

    def put(self, item: Item, data: bytes) -> tuple[str, int | None]:
        self.kept.append(item.position)
        self.images.append(data)
        return self.url, len(self.kept) - 1

    def close(self) -> None:
        if self.table is None or not self.kept:
            _publish(self.url, None, self.check_lease)
            return
        # Some types of columns can be cut and joined, but not taken from.
        spans = (list(span) for _, span in groupby(enumerate(self.kept), key=lambda pair: pair[1] - pair[0]))
        table = pa.concat_tables([self.table.slice(span[0][1], len(span)) for span in spans])
        column = image_column(table.schema)
        index = table.schema.get_field_index(column)
        old, encoded = table.column(index), pa.array(self.images, pa.binary())
        if pa.types.is_struct(old.type):
            fields = {field.name: old.combine_chunks().field(field.name) for field in old.type} | {"bytes": encoded}
            encoded = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
        field = pa.field(column, encoded.type, metadata=table.schema.field(index).metadata)
        self.check_lease()
        storage.write_table(self.url, table.set_column(index, field, encoded))


class ShardSink(Sink):
    """A unit's images in one Parquet file, and nothing else."""

    def __init__(self, url: str, check_lease: Check) -> None:
        self.url, self.check_lease = url, check_lease
        self.rows = TableSpool(schema.SHARD)

    def put(self, item: Item, data: bytes) -> tuple[str, int | None]:
        height, width = cast(Picture, item.picture).pixels.shape[:2]
        self.rows.append({"id": item.id, "image": data, "height": height, "width": width}, len(data))
        return self.url, len(self.rows) - 1

    def close(self) -> None:
        _publish(self.url, self.rows.sealed() if self.rows else None, self.check_lease)


class TarSink(Sink):
    """A WebDataset tar: images under their names with the new extension, and the members that are no images.

    No member's name leads out of the folder that the tar is unpacked in; a symbolic link stays what it was.
    """

    def __init__(self, url: str, format: str, check_lease: Check) -> None:
        self.url, self.extension, self.check_lease = url, images.FORMATS[format].extension, check_lease
        self.file = tempfile.SpooledTemporaryFile(SPOOLED)  # noqa: SIM115
        self.tar = tarfile.open(fileobj=self.file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self.names: set[str] = set()
        self.numbers: dict[str, int] = {}
        """The number that the last output of each taken name has."""
        self.count = 0
        """Members so far."""

    def put(self, item: Item, data: bytes) -> tuple[str, int | None]:
        own = inside(item.name)
        stem = own.rpartition(".")[0] if images.has_known_extension(own) else own
        name, number = f"{stem}.{self.extension}", self.numbers.get(own, 0)
        while name in self.names:
            number += 1
            name = f"{own}{f'~{number}' if number > 1 else ''}.{self.extension}"
            self.numbers[own] = number
        self._add(tarfile.TarInfo(name), data)
        return self.url, self.count - 1

    def pass_on(self, item: Item) -> None:
        header = cast(tarfile.TarInfo, item.header)
        header.name = inside(header.name)
        if header.islnk():
            header.linkname = inside(header.linkname)
        self._add(header, cast(bytes, item.data))

    def _add(self, header: tarfile.TarInfo, data: bytes) -> None:
        self.names.add(header.name)
        self.count += 1
        header.size = len(data)
        self.tar.addfile(header, io.BytesIO(data))
        self.tar.members.clear()  # type: ignore[attr-defined]  # there may be millions

    def close(self) -> None:
        self.tar.close()
        written = cast(IO[bytes], self.file) if self.names else None
        _publish(self.url, written, self.check_lease, content_type="application/x-tar")
        self.file.close()


class TarShardSink(TarSink):
    """A unit's images in one WebDataset tar, and nothing else."""

    def pass_on(self, item: Item) -> None:
        """Leave out what is no image."""
