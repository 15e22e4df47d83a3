"""The files below a folder of any store, in the order of their keys' UTF-8 bytes, streaming.

- **Local**: a walk that sorts one folder at a time; folders with very many files are sorted through a temporary file.
  Symbolic links are followed, but not back to a folder that the walk is in, nor to the run's output.
- **S3**: the pages of ListObjectsV2, which come in that order; the next page is fetched while this one is used.
- **Other stores** (``gs://``, ``http(s)://``, ``memory://``, ...): listed folder by folder, as fsspec does, and sorted
  through a temporary file. One folder's listing is held in memory. Pages over HTTP tell neither sizes nor versions: the
  server is asked for those of each file, many at a time.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol, cast
from urllib.parse import unquote

from fsspec import AbstractFileSystem

from raypurify import storage
from raypurify.cleaning.streams import concurrently, ordered
from raypurify.data import files
from raypurify.storage import is_web
from raypurify.storage.published import escaped

NO_FILES = "pipe(s) or device(s)"
"""As they are counted."""

ASKED_AT_ONCE = 32
"""Files of a web server that are asked for at a time."""

UNORDERED_BUCKET = "--x-s3"
"""How the names of S3's directory buckets end: they list in no order."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A file as a listing tells of it."""

    key: str
    """Relative to the folder."""
    url: str
    size: int
    """Bytes; -1 where the listing does not say, or nothing is behind a link."""
    version: str
    """Entity tag or time of change; empty where the listing does not say."""


class Selection(Protocol):
    """Which files are wanted, by their keys alone: others cost no request."""

    def enters(self, folder: str) -> bool:
        """Whether files below ``folder`` (``a/b``) may be wanted."""
        ...

    def takes(self, key: str) -> bool:
        """Whether the file is wanted."""
        ...

    def leave(self, kind: str) -> None:
        """Count something that is left alone though its name is wanted."""
        ...


def files_below(root: str, selection: Selection, output: str, *, begins: str = "") -> Iterator[Seen]:
    """The wanted files below an absolute path or URL, sorted by key.

    Args:
        root: the folder.
        selection: which are wanted.
        output: a folder that is not entered, though links may lead to it.
        begins: what the keys of wanted files begin with: it shortens the listing of S3.

    Raises:
        DataError: the folder is not there, or cannot be listed; names it.
    """
    with files.naming(root):
        fs, path = storage.filesystem(root)
        if storage.is_local(root):
            yield from _local(path, selection, output)
        elif "s3" in fs.protocol:
            yield from _s3(fs, path, root.partition("://")[0], selection, begins)
        else:
            yield from _other(root, selection)


@dataclass(frozen=True)
class _Folder:
    prefix: str
    path: str
    names: Iterator[tuple[str, str]]
    identity: tuple[int, int]


def _local(root: str, selection: Selection, output: str) -> Iterator[Seen]:
    above = [_folder("", root)]
    closed = (
        {_identity(storage.filesystem(output)[1])} if storage.is_local(output) and storage.exists(output) else set()
    )
    while above:
        here = above[-1]
        shown, name = next(here.names, ("", ""))
        if not name:
            above.pop()
        elif not name.endswith("/"):
            key = here.prefix + shown
            if not selection.takes(key):
                continue
            if seen := _seen(key, here, name):
                yield seen
            else:
                selection.leave(NO_FILES)
        elif selection.enters(here.prefix + shown[:-1]):
            folder = _folder(here.prefix + shown, os.path.join(here.path, name[:-1]))
            if folder.identity not in closed and all(folder.identity != other.identity for other in above):
                above.append(folder)


def _folder(prefix: str, path: str) -> _Folder:
    names = cast(Iterator[tuple[str, str]], ordered(_names(path)))
    return _Folder(prefix, path, names, _identity(path))


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _names(folder: str) -> Iterator[tuple[str, str]]:
    """What a local folder holds: each name as text, and as it is; folders have a final slash, to sort as keys do."""
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                is_folder = entry.is_dir()
            except OSError:
                # A link to itself. Like one to nothing, it becomes a reject when it is read.
                is_folder = False
            name = entry.name + "/" * is_folder
            yield escaped(name), name


def _seen(key: str, folder: _Folder, name: str) -> Seen | None:
    """The file, or None for what is no file: reading a pipe would never end."""
    path = os.path.join(folder.path, name)
    try:
        found = os.stat(path)
    except OSError:
        return Seen(key=key, url=path, size=-1, version="")
    if not stat.S_ISREG(found.st_mode):
        return None
    return Seen(key=key, url=path, size=found.st_size, version=str(found.st_mtime_ns))


def _s3(fs: AbstractFileSystem, path: str, scheme: str, selection: Selection, begins: str) -> Iterator[Seen]:
    bucket, folder, _ = fs.split_path(path)
    folder = folder.rstrip("/") + "/" if folder else ""
    objects: Iterator[tuple[Any, ...]] = _objects(fs, bucket, folder + begins)
    if bucket.endswith(UNORDERED_BUCKET):
        objects = ordered(objects)
    for name, size, version in objects:
        key = name[len(folder) :]
        if not key or key.endswith("/"):
            continue
        if selection.takes(key):
            yield Seen(key=key, url=f"{scheme}://{bucket}/{name}", size=size, version=version)


def _objects(fs: AbstractFileSystem, bucket: str, prefix: str) -> Iterator[tuple[str, int, str]]:
    """Key, size and entity tag of each object."""

    def page(token: str | None) -> dict[str, Any]:
        after = {"ContinuationToken": token} if token else {}
        listed: dict[str, Any] = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **after, **fs.req_kw)
        return listed

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(page, None)
        while True:
            listed = following.result()
            token = listed.get("NextContinuationToken")
            if token:
                following = pool.submit(page, token)
            for found in listed.get("Contents", ()):
                yield found["Key"], int(found["Size"]), found.get("ETag", "").strip('"')
            if not token:
                return


def _other(root: str, selection: Selection) -> Iterator[Seen]:
    # A page over HTTP may name a file twice.
    records = (next(same) for _, same in groupby(ordered(_unordered(root, selection)), key=lambda record: record[0]))
    told = concurrently(lambda record: ask(record[1]), records, at_once=ASKED_AT_ONCE, when=lambda _: is_web(root))
    for (key, url, *listed), asked in told:
        size, version = asked or listed
        yield Seen(key=key, url=url, size=size, version=version)


def ask(url: str) -> tuple[int, str]:
    """Size and version of the file behind a link; -1 and nothing where its server does not tell, or is gone."""
    try:
        info: dict[str, Any] = storage.on_store(url, lambda fs, path: fs.info(path))
    except OSError:
        return -1, ""
    found = files.described(url, info)
    return -1 if info["size"] is None else found.size, found.version


def _unordered(root: str, selection: Selection) -> Iterator[tuple[str, str, int, str]]:
    fs, path = storage.filesystem(root)
    top = path.rstrip("/") + "/"
    folders = [top]
    while folders:
        folder = folders.pop()
        for info in storage.on_store(fs.unstrip_protocol(folder), _listing):
            name: str = info["name"]
            if not name.startswith(top) or (is_web(root) and ("?" in name or "#" in name)):
                continue
            key = unquote(name[len(top) :]) if is_web(root) else name[len(top) :]
            if info["type"] == "directory" or name.endswith("/"):
                below = name.rstrip("/") + "/"
                if len(below) > len(folder) and below.startswith(folder) and selection.enters(key.rstrip("/")):
                    folders.append(below)
            elif key and selection.takes(key):
                url = fs.unstrip_protocol(name)
                found = files.described(url, {**info, "size": -1 if info["size"] is None else info["size"]})
                yield key, url, found.size, found.version


def _listing(fs: AbstractFileSystem, path: str) -> list[dict[str, Any]]:
    fs.invalidate_cache()
    listed: list[dict[str, Any]] = fs.ls(path, detail=True)
    fs.invalidate_cache()
    return listed
