"""From a dataset's name or URL to its shards: where a named dataset is, and which format a URL holds."""

from __future__ import annotations

import os
import re
from dataclasses import replace

from raypurify import storage
from raypurify.data import (
    cifar,
    cifar_archive,
    cifar_binary,
    cifar_python,
    digits,
    download,
    files,
    folder,
    idx,
    parquet,
)
from raypurify.data.base import DataError, Found
from raypurify.data.files import File
from raypurify.storage.published import redacted

NAMED = ("digits", "mnist", "cifar10")

SPLIT_NAMES = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
"""What a split's folder or Parquet files are called; the first that exists is taken."""

FORMATS = (
    "MNIST's IDX files (train-images-idx3-ubyte, ..., gzipped or not); CIFAR-10's batches or archives; Parquet "
    "(*.parquet); or a folder of class folders with images"
)


def resolve(data: str, split: str, url: str | None) -> tuple[str, Found]:
    """The dataset's name, and its shards of one split.

    A folder may hold, and is searched in this order for: IDX files; CIFAR-10's batches; Parquet (in the folder itself,
    or in ``train``, ``test``, ``data``); CIFAR-10's archives or the folders in them; class folders. Parquet files are
    told apart by the names that Hugging Face gives them (``train-00000-of-00001.parquet``); where no file is named
    after a split, a sixth of the rows, chosen by a hash of their ids, is the test split (``base.in_split``).

    Raises:
        DataError: nothing there, or nothing of a known format.
    """
    if data == "digits":
        return data, digits.find(split)
    if data not in NAMED:
        root = storage.absolute(url or data)
        name = redacted(storage.without_query(root)).rstrip("/").rpartition("/")[2]
        return name or root, find(root, split)
    root, downloaded = (storage.absolute(url), False) if url else _folder_of(data)
    found = find(root, split, classes=10 if data == "mnist" else None)
    if data == "cifar10":
        found = replace(found, classes=cifar.CLASSES, image_shape=cifar.SHAPE)
    if downloaded:
        shards = (replace(shard, extra={**shard.extra, "download": data}) for shard in found.shards)
        found = replace(found, shards=tuple(shards))
    return data, found


def _folder_of(name: str) -> tuple[str, bool]:
    """The folder of a named dataset, and whether it is the downloaded one."""
    base = os.environ.get("RAYPURIFY_DATA")
    if base:
        root = files.join(storage.absolute(base), name)
        if files.exists(root):
            return root, False
    return str(download.fetch(name)), True


def find(root: str, split: str, *, classes: int | None = None) -> Found:
    """The shards of a split at an absolute URL, of whichever format. ``classes`` is that of :func:`idx.find`."""
    file = files.stat(root)
    found = _in_file(file, split, classes) if file else None
    # Over HTTP a folder looks like a file, so that only its name can tell.
    if found is None and (file is None or root.startswith("http")):
        found = _in_folder(root, split, classes)
    if found is None:
        raise DataError(f"{root}: no data of the {split} split found here; expected {FORMATS}")
    return found


def _in_file(file: File, split: str, classes: int | None) -> Found | None:
    name = file.name.partition("?")[0]
    if name.endswith(".parquet"):
        return parquet.find(*_of_split([(name, file)], split, file.url))
    if name.endswith((".tar.gz", ".tgz")):
        return cifar_archive.find(file, split)
    if any(file.key in idx.names(each) for each in SPLIT_NAMES):
        parent = file.url.rpartition("/")[0]
        candidates = (files.stat(files.join(parent, key + end)) for key in idx.names(split) for end in ("", ".gz"))
        return idx.find([candidate for candidate in candidates if candidate], split, classes=classes)
    return None


def _in_folder(root: str, split: str, classes: int | None) -> Found | None:
    listed, folders = files.list_folder(root)
    found = (
        idx.find(listed, split, classes=classes)
        or cifar_binary.find(listed, split, url=root)
        or cifar_python.find(listed, split, url=root)
    )
    if found:
        return found
    tables, unsplit = _tables(root, listed, folders, split)
    if tables:
        return parquet.find(tables, unsplit)
    for file in listed:
        if file.name in cifar_archive.NAMES:
            return cifar_archive.find(file, split)
    for name in ("cifar-10-batches-bin", "cifar-10-batches-py"):
        if name in folders:
            return _in_folder(files.join(root, name), split, classes)
    return folder.find(root, folders, split, SPLIT_NAMES)


Tables = tuple[list[tuple[str, File]], str | None]
"""Key and file of each Parquet file, and the split that its rows are to be picked for; None: they are of the split."""


def _tables(root: str, listed: list[File], folders: list[str], split: str) -> Tables:
    tables = _parquet(listed)
    for name in (*SPLIT_NAMES[split], "data"):
        if not tables and name in folders:
            inside = _parquet(files.list_folder(files.join(root, name))[0], f"{name}/")
            if name != "data":
                return inside, None
            tables = inside
    return _of_split(tables, split, root)


def _parquet(listed: list[File], prefix: str = "") -> list[tuple[str, File]]:
    return [(prefix + file.name, file) for file in listed if file.name.endswith(".parquet")]


def _of_split(tables: list[tuple[str, File]], split: str, root: str) -> Tables:
    by_name: dict[str, list[tuple[str, File]]] = {}
    every_name = [name for names in SPLIT_NAMES.values() for name in names]
    for key, file in tables:
        own = next((name for name in every_name if re.match(rf"{name}(?![a-z])", file.name.lower())), "")
        by_name.setdefault(own, []).append((key, file))
    for name in SPLIT_NAMES[split]:
        if name in by_name:
            return by_name[name], None
    if any(by_name):
        raise DataError(f"{root}: no Parquet of the {split} split here: the files are named {', '.join(by_name)}")
    return tables, split
