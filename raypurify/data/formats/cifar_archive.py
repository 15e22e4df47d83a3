"""CIFAR-10's archives, ``cifar-10-binary.tar.gz`` and ``cifar-10-python.tar.gz``, as they are published.

An archive is unpacked to records once a node, in the cache folder.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raypurify import storage
from raypurify.data import files
from raypurify.data.base import DataError, Found, Rows, Shard
from raypurify.data.files import File, Place
from raypurify.data.formats import _cifar_pickle, cifar

RANK = 4
EXPECTED = "CIFAR-10's archives"
NAMES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")
FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")


def find(place: Place, split: str) -> Found | None:
    """A shard for each batch of the split, in an archive or in the folder that comes out of one.

    Raises:
        DataError: a batch is missing or truncated, or the archive is damaged or holds none of the split.
    """
    for file in place.files:
        if file.name in NAMES or (not place.is_folder and file.name.partition("?")[0].endswith((".tar.gz", ".tgz"))):
            return _in_archive(file, split)
    for name in FOLDERS:
        if name in place.folders:
            return cifar.find(files.folder_at(storage.join(place.url, name)), split)
    return None


def _in_archive(archive: File, split: str) -> Found:
    # An archive is unpacked first: its members are known at its end alone.
    listed, _ = files.list_folder(files.unpacked(archive.url, archive.version, unpack))
    by_name = {file.name: file for file in listed}
    names = cifar.batches(by_name, split, url=archive.url)
    if not names:
        raise DataError(f"{archive.url}: expected batches of CIFAR-10's {split} split, got {sorted(by_name) or 'none'}")
    shards = []
    for name in names:
        rows = cifar.count(by_name[name], url=f"{archive.url}, member {name}")
        extra = {"version": archive.version}
        shards.append(Shard(format=__name__, url=archive.url, key=name, rows=rows, extra=extra))
    return cifar.found(shards, [by_name[name] for name in names])


ids = cifar.ids


def read(shard: Shard, rows: NDArray[np.int64]) -> Rows:
    return cifar.read_records(_unpacked(shard), shard, rows)


def labels(shard: Shard, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return cifar.read_labels(_unpacked(shard), shard)[rows]


def _unpacked(shard: Shard) -> str:
    return storage.join(files.unpacked(shard.url, shard.extra["version"], unpack), shard.key)


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
    if not member.isfile() or not cifar.is_batch(name):
        return
    content = archive.extractfile(member)
    if content is not None and cifar.is_binary(name):
        (folder / name).write_bytes(content.read())
    elif content is not None:
        (folder / name).write_bytes(_cifar_pickle.records(content, f"{url}, member {member.name}"))
