"""From what a user calls a dataset, a name, a URL or a dotted path, to the shards of one split."""

from __future__ import annotations

import difflib
import importlib
import os
import re
from dataclasses import replace
from types import ModuleType

from raypurify import plugins, storage
from raypurify.data import digits, download, files, formats
from raypurify.data.base import DataError, Found
from raypurify.data.formats import cifar
from raypurify.storage.published import redacted

DOWNLOADED = {"mnist": 10, "cifar10": len(cifar.CLASSES)}
"""Named datasets that can be downloaded, and the number of their classes."""

_WORD = re.compile(r"\w+")
_DOTTED_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*(,.*)?", re.DOTALL)


def resolve(data: str, split: str) -> tuple[str, Found]:
    """The dataset's name, and its shards of one split.

    ``my_package.module:callable``, with ``,KEY=VALUE`` for each parameter, is called as ``callable(split=split, ...)``
    and returns a ``Found``. Else a place is asked for each format of ``raypurify.data.formats``, in the order of their
    ranks: IDX files; CIFAR-10's batches; Parquet (in the folder itself, or in ``train``, ``test``, ``data``);
    CIFAR-10's archives or the folders in them; class folders.

    Raises:
        DataError: nothing there, or nothing of a known format.
        ValueError: a dotted path that names no callable, or one that takes other parameters or returns something else.
    """
    if data == "digits":
        return data, digits.source(split)
    if _DOTTED_PATH.fullmatch(data):
        return data, _from_callable(data, split)
    if data not in DOWNLOADED:
        root = storage.absolute(data)
        if _WORD.fullmatch(data) and not os.path.exists(data):
            names = ["digits", *DOWNLOADED]
            near = difflib.get_close_matches(data, names, n=1)
            guess = f"; did you mean {near[0]}?" if near else ""
            raise DataError(f"there is no {root}, and no dataset {data!r}: known are {', '.join(names)}{guess}")
        name = redacted(storage.without_query(root)).rstrip("/").rpartition("/")[2]
        return name or root, find(root, split)
    root, downloaded = _folder_of(data)
    found = find(root, split, classes=DOWNLOADED[data])
    if data == "cifar10":
        found = replace(found, classes=cifar.CLASSES, image_shape=cifar.SHAPE)
    if downloaded:
        shards = (replace(shard, extra={**shard.extra, "download": data}) for shard in found.shards)
        found = replace(found, shards=tuple(shards))
    return data, found


def _from_callable(data: str, split: str) -> Found:
    spec = plugins.Spec.parse(data)
    found = plugins.build(__package__, replace(spec, params={**spec.params, "split": split}))
    if not isinstance(found, Found):
        raise ValueError(f"{data}: expected a callable that returns a raypurify.data.Found, got {found!r}")
    return replace(found, contents=(*found.contents, plugins.source_hash(spec, ())))


def _folder_of(name: str) -> tuple[str, bool]:
    """The folder of a named dataset, and whether it is the downloaded one."""
    base = os.environ.get("RAYPURIFY_DATA")
    if base:
        root = storage.join(storage.absolute(base), name)
        with files.naming(root):
            if storage.exists(root):
                return root, False
    return str(download.fetch(name)), True


def find(root: str, split: str, *, classes: int | None = None) -> Found:
    """The shards of a split at an absolute URL, of whichever format.

    Args:
        classes: number of classes, where the dataset's name tells it.
    """
    known = _formats()
    for place in files.places(root, classes=classes):
        for format in known:
            found: Found | None = format.find(place, split)
            if found is not None:
                return found
    expected = "; or ".join(format.EXPECTED for format in known)
    raise DataError(f"{root}: no data of the {split} split found here; expected {expected}")


def _formats() -> list[ModuleType]:
    """The modules of ``raypurify.data.formats``, by their ranks."""
    names = plugins.known(formats.__name__)
    return sorted((importlib.import_module(f"{formats.__name__}.{name}") for name in names), key=lambda one: one.RANK)
