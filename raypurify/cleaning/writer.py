"""Where cleaned images go: files of their own, Parquet, or tars. Each output is there whole, or not at all."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import IO, Protocol, cast

import pyarrow as pa

from raypurify import images, storage
from raypurify.cleaning.base import Entry, Unit
from raypurify.cleaning.config import CleaningConfig
from raypurify.cleaning.reader import Group, Input
from raypurify.cleaning.streams import SPOOLED, TableSpool
from raypurify.data.columns import image_column

Check = Callable[[], None]
WRITES_AT_ONCE = 16


class Sink(Protocol):
    """Takes cleaned images in the order of their unit."""

    def put(self, item: Input, data: bytes, shape: Sequence[int]) -> tuple[str, int | None]:
        """Take an encoded image of (H, W, C); says the URL that it will be at, and its row there."""
        ...

    def reject(self, item: Input) -> None:
        """Remove what a former version of a rejected input has left."""
        ...

    def pass_on(self, item: Input) -> None:
        """Take a tar's member that is no image."""
        ...

    def close(self) -> None:
        """Publish what was put; returns when all of it is there."""
        ...


def mirror(root: str, group: Group, config: CleaningConfig, check_lease: Check) -> Sink:
    """What mirrors a group of inputs under ``root``.

    Args:
        check_lease: raises where another attempt may hold the output; called before each write and each removal.
    """
    if group.entries[0].kind == "image":
        return ImageFiles(root, group.entries, config.format, check_lease)
    url = storage.join(root, group.entries[0].output)
    if group.entries[0].kind == "tar":
        return Tar(url, images.FORMATS[config.format].extension, check_lease)
    return Rows(url, group.table, check_lease)


def shard(root: str, unit: Unit, config: CleaningConfig, check_lease: Check) -> Sink | None:
    """What holds all of a unit's images under ``root``, where shards are asked for; ``check_lease``: as above."""
    if config.shards == "parquet":
        return Shard(storage.join(root, f"{unit.name}.parquet"), check_lease)
    if config.shards == "webdataset":
        return Tar(storage.join(root, f"{unit.name}.tar"), images.FORMATS[config.format].extension, check_lease)
    return None


class Held:
    """A file that can be read while the lease is held. What copies it reads nothing last, right before it publishes."""

    def __init__(self, file: IO[bytes], check_lease: Check) -> None:
        self.file, self.check_lease, self.seek = file, check_lease, file.seek

    def read(self, size: int = -1) -> bytes:
        self.check_lease()
        return self.file.read(size)


class ImageFiles:
    """Each image in a file of its own, under its input's name."""

    def __init__(self, root: str, entries: Sequence[Entry], format: str, check_lease: Check) -> None:
        self.root, self.entries, self.check_lease = root, entries, check_lease
        self.content_type = images.FORMATS[format].content_type
        self.pool = ThreadPoolExecutor(WRITES_AT_ONCE)
        self.writes: list[Future[None]] = []

    def put(self, item: Input, data: bytes, shape: Sequence[int]) -> tuple[str, int | None]:
        url = storage.join(self.root, self.entries[item.position].output)
        if len(self.writes) >= 4 * WRITES_AT_ONCE:
            self.writes.pop(0).result()
        self.writes.append(self.pool.submit(self._write, url, data))
        return url, None

    def _write(self, url: str, data: bytes) -> None:
        self.check_lease()
        storage.write_bytes(url, data, content_type=self.content_type)

    def reject(self, item: Input) -> None:
        self.check_lease()
        storage.remove(storage.join(self.root, self.entries[item.position].output))

    def pass_on(self, item: Input) -> None:
        raise TypeError("image files have no members")

    def close(self) -> None:
        with self.pool:
            for write in self.writes:
                write.result()


class Rows:
    """The run of a Parquet file with its image column replaced; rows that were rejected are left out."""

    def __init__(self, url: str, table: pa.Table | None, check_lease: Check) -> None:
        self.url, self.table, self.check_lease = url, table, check_lease
        self.kept: list[int] = []
        self.images: list[bytes] = []

    def put(self, item: Input, data: bytes, shape: Sequence[int]) -> tuple[str, int | None]:
        self.kept.append(item.position)
        self.images.append(data)
        return self.url, len(self.kept) - 1

    def reject(self, item: Input) -> None:
        """The row is left out."""

    def pass_on(self, item: Input) -> None:
        raise TypeError("rows have no members")

    def close(self) -> None:
        if self.table is None or not self.kept:
            self.check_lease()
            storage.remove(self.url)
            return
        # Some types of columns can be cut and joined, but not taken from.
        runs = (list(run) for _, run in groupby(enumerate(self.kept), key=lambda pair: pair[1] - pair[0]))
        table = pa.concat_tables([self.table.slice(run[0][1], len(run)) for run in runs])
        column = image_column(table.schema)
        index = table.schema.get_field_index(column)
        old, encoded = table.column(index), pa.array(self.images, pa.binary())
        if pa.types.is_struct(old.type):
            fields = {name: old.combine_chunks().field(name) for name in (field.name for field in old.type)}
            fields["bytes"] = encoded
            encoded = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
        field = pa.field(column, encoded.type, metadata=table.schema.field(index).metadata)
        self.check_lease()
        storage.write_table(self.url, table.set_column(index, field, encoded))


class Shard:
    """A unit's images in one Parquet file: id, image, height, width."""

    def __init__(self, url: str, check_lease: Check) -> None:
        self.url, self.check_lease = url, check_lease
        self.rows = TableSpool(SHARD)

    def put(self, item: Input, data: bytes, shape: Sequence[int]) -> tuple[str, int | None]:
        self.rows.append({"id": item.id, "image": data, "height": shape[0], "width": shape[1]}, len(data))
        return self.url, len(self.rows) - 1

    def reject(self, item: Input) -> None:
        """It is left out."""

    def pass_on(self, item: Input) -> None:
        """Images only."""

    def close(self) -> None:
        self.check_lease()
        if self.rows:
            storage.write_file(self.url, cast(IO[bytes], Held(self.rows.sealed(), self.check_lease)))
        else:
            storage.remove(self.url)


SHARD = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("height", pa.int64(), nullable=False),
        pa.field("width", pa.int64(), nullable=False),
    ]
)


class Tar:
    """A WebDataset tar: images under their names with the new extension, and the members that are no images."""

    def __init__(self, url: str, extension: str, check_lease: Check) -> None:
        self.url, self.extension, self.check_lease = url, extension, check_lease
        self.file = tempfile.SpooledTemporaryFile(SPOOLED)  # noqa: SIM115
        self.tar = tarfile.open(fileobj=self.file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self.names: set[str] = set()
        self.numbers: dict[str, int] = {}
        """Of inputs' names that are taken: the number that the last output of each has."""
        self.count = 0

    def put(self, item: Input, data: bytes, shape: Sequence[int]) -> tuple[str, int | None]:
        stem = item.name.rpartition(".")[0] if images.has_known_extension(item.name) else item.name
        name, number = f"{stem}.{self.extension}", self.numbers.get(item.name, 0)
        while name in self.names:
            number += 1
            name = f"{item.name}{f'~{number}' if number > 1 else ''}.{self.extension}"
            self.numbers[item.name] = number
        self._add(tarfile.TarInfo(name), data)
        self.count += 1
        return self.url, self.count - 1

    def reject(self, item: Input) -> None:
        """It is left out."""

    def pass_on(self, item: Input) -> None:
        """Take a member that is no image as it is."""
        self._add(cast(tarfile.TarInfo, item.header), cast(bytes, item.other))

    def _add(self, header: tarfile.TarInfo, data: bytes) -> None:
        self.names.add(header.name)
        header.size = len(data)
        self.tar.addfile(header, io.BytesIO(data))
        self.tar.members.clear()  # type: ignore[attr-defined]  # there may be millions

    def close(self) -> None:
        self.tar.close()
        if self.names:
            held = cast(IO[bytes], Held(cast(IO[bytes], self.file), self.check_lease))
            storage.write_file(self.url, held, content_type="application/x-tar")
        else:
            self.check_lease()
            storage.remove(self.url)
        self.file.close()
