"""CIFAR-10's archives, ``cifar-10-binary.tar.gz`` and ``cifar-10-python.tar.gz``, as they are published.

An archive is unpacked to records once a node, in the cache folder.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raypurify.data import cifar, cifar_python, files
from raypurify.data.base import DataError, Found, Rows, Shard
from raypurify.data.files import File

NAMES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")


def find(archive: File, split: str) -> Found:
    """A shard for each batch of the split. Unpacks the archive first: its members are known at its end alone.

    Raises:
        DataError: the archive is damaged, holds no batch of the split, or a batch is missing or truncated.
    """
    listed, _ = files.list_folder(files.unpacked(archive.url, archive.version, unpack))
    by_name = {file.name: file for file in listed}
    names = [
        name for binary in (True, False) for name in cifar.batches(list(by_name), split, url=archive.url, binary=binary)
    ]
    if not names:
        raise DataError(f"{archive.url}: expected batches of CIFAR-10's {split} split, got {sorted(by_name) or 'none'}")
    shards = []
    for name in names:
        rows = cifar.count(by_name[name], url=f"{archive.url}, member {name}")
        extra = {"version": archive.version}
        shards.append(Shard(format="cifar_archive", url=archive.url, key=name, rows=rows, extra=extra))
    return cifar.found(shards, [files.content_identity(by_name[name]) for name in names])


def read(shard: Shard, rows: NDArray[np.int64]) -> Rows:
    return cifar.read_records(_unpacked(shard), shard, rows)


def labels(shard: Shard) -> NDArray[np.int64]:
    return cifar.read_labels(_unpacked(shard), shard)


def _unpacked(shard: Shard) -> str:
    return files.join(files.unpacked(shard.url, shard.extra["version"], unpack), shard.key)


def unpack(url: str, folder: Path) -> None:
    """Write each batch in the archive as a file of records, named as in the archive; one is in memory at a time.

    Raises:
        DataError: the archive is cut off or damaged, or a batch is.
    """
    folder.mkdir()
    offset = 0
    try:
        with files.inflating(url, lambda: offset) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                offset = member.offset
                _write_batch(archive, member, url, folder)
            # The checksum is behind the archive's end, where tarfile does not read.
            while stream.read(2**20):
                pass
    except tarfile.TarError as error:
        raise DataError(
            f"{url}: truncated, or no tar archive: {error}, near offset {offset} of the inflated content; "
            "fetch the file again"
        ) from error


def _write_batch(archive: tarfile.TarFile, member: tarfile.TarInfo, url: str, folder: Path) -> None:
    name = member.name.rpartition("/")[2]
    binary = cifar.is_batch(name, binary=True)
    if not member.isfile() or not (binary or cifar.is_batch(name, binary=False)):
        return
    content = archive.extractfile(member)
    if content is not None:
        data = content.read() if binary else cifar_python.records(content, f"{url}, member {member.name}")
        (folder / name).write_bytes(data)
