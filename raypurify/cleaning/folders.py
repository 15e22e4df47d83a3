"""The files below a folder of any store that can be cleaned, in the order of their keys' UTF-8 bytes, streaming.

- **Local**: a walk that sorts one folder at a time; folders with very many files are sorted through a temporary file.
  Symbolic links are followed, but not back to a folder that the walk is in, nor to the run's output.
- **S3**: the pages of ListObjectsV2, which come in that order; the next page is fetched while this one is used.
- **Other stores** (``gs://``, ``http(s)://``, ``memory://``, ...): listed folder by folder, as fsspec does, and sorted
  through a temporary file. One folder's listing is held in memory. Pages over HTTP tell neither sizes nor versions: the
  server is asked for those of each file, many at a time.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any
from urllib.parse import unquote

from fsspec import AbstractFileSystem
from fsspec.utils import glob_translate

from raypurify import storage
from raypurify.cleaning.entries import Entry, Kind, kind_of
from raypurify.data import files
from raypurify.storage import is_web
from raypurify.storage.bounded import concurrently, ordered
from raypurify.storage.published import escaped

EXTENSIONS_COUNTED = 100
"""Other extensions that are counted apart; those after them are counted together, under ``others``."""
ASKED_AT_ONCE = 32
"""Files whose size and version are asked for at a time."""
UNORDERED_BUCKET = "--x-s3"
"""How the names of S3's directory buckets end: they list in no order."""


class Selection:
    """Which keys are inputs, without a request to the store; counts the others."""

    def __init__(self, skipped: Counter[str], pattern: str | None = None) -> None:
        self.skipped = skipped
        self.begins = re.split(r"[*?[]", pattern or "", maxsplit=1)[0]
        """What the keys of inputs begin with: it shortens the listing of S3."""
        self.segments = pattern.split("/") if pattern else ["**"]
        self.matches = re.compile(glob_translate(pattern)).match if pattern else None
        self.hidden: str | None = None

    def enters(self, folder: str) -> bool:
        """Whether inputs may be below the folder ``a/b``; counts a hidden one, of one listing's neighbours once."""
        names = folder.split("/")
        for depth, name in enumerate(names):
            if _is_hidden(name) or name.startswith("_"):
                hidden = "/".join(names[: depth + 1])
                if not self.matches and hidden != self.hidden:
                    self.skip("hidden folder(s)")
                self.hidden = hidden
                return False
        for name, segment in zip(names, self.segments, strict=False):
            if segment == "**":
                return True
            if not re.match(glob_translate(segment), name):
                return False
        return len(names) < len(self.segments)

    def kind_of(self, key: str) -> Kind | None:
        """What a file is taken for; None where it is no input, which is counted."""
        folder, _, name = key.rpartition("/")
        kind = kind_of(name)
        if (folder and not self.enters(folder)) or (self.matches and not self.matches(key)):
            return None
        if _is_hidden(name) or (name.startswith("_") and kind != "image"):
            self.skip("hidden file(s)")
            return None
        if kind is None:
            self.skip(os.path.splitext(name)[1].lower() or "no extension")
        return kind

    def skip(self, what: str) -> None:
        """Count something that is left alone."""
        known = what in self.skipped or len(self.skipped) < EXTENSIONS_COUNTED
        self.skipped[what if known else "others"] += 1


def _is_hidden(name: str) -> bool:
    # In the keys of an object store "." and ".." are names like others.
    return name.startswith(".") and name not in (".", "..")


def files_below(root: str, selection: Selection, output: str) -> Iterator[Entry]:
    """The inputs below a folder at an absolute path or URL, sorted by key.

    Args:
        output: a folder that is not entered, though links may lead to it.

    Raises:
        DataError: the folder is not there, or cannot be listed; names it.
    """
    with files.naming(root):
        fs, path = storage.filesystem(root)
        if storage.is_local(root):
            yield from _local(path, selection, output)
        elif "s3" in fs.protocol:
            yield from _s3(fs, path, root.partition("://")[0], selection)
        else:
            yield from _other(root, selection)


def with_versions(listed: Iterable[Entry]) -> Iterator[Entry]:
    """The files with their sizes and versions, which are asked for many at a time."""
    for file, asked in concurrently(lambda file: _size_and_version(file.url), listed, at_once=ASKED_AT_ONCE):
        size, version = asked or (-1, "")
        yield file._replace(size=size, version=version)


def _size_and_version(url: str) -> tuple[int, str]:
    """-1 and nothing where the file is not there, or its web server does not tell."""
    if not is_web(url):
        found = files.stat(url)
        return (found.size, found.version) if found else (-1, "")
    try:
        # One web server that refuses or is gone says nothing of the others.
        return _described(url, storage.on_store(url, lambda fs, path: fs.info(path)))
    except OSError:
        return -1, ""


def _described(url: str, info: dict[str, Any]) -> tuple[int, str]:
    found = files.described(url, info)
    return -1 if info["size"] is None else found.size, found.version


class _Folder:
    """A local folder that the walk is in."""

    def __init__(self, prefix: str, path: str) -> None:
        self.prefix, self.path = prefix, path
        with files.naming(path):
            self.identity = _identity(path)
        self.names = ordered(_names(path))


def _local(root: str, selection: Selection, output: str) -> Iterator[Entry]:
    above = [_Folder("", root)]
    has_output = storage.is_local(output) and storage.exists(output)
    closed = {_identity(storage.filesystem(output)[1])} if has_output else set()
    while above:
        here = above[-1]
        shown, name = next(here.names, ("", ""))
        key, path = here.prefix + shown, os.path.join(here.path, name)
        if not name:
            above.pop()
        elif name.endswith("/"):
            if selection.enters(key[:-1]):
                folder = _Folder(key, path[:-1])
                if folder.identity not in closed and all(folder.identity != other.identity for other in above):
                    above.append(folder)
        elif kind := selection.kind_of(key):
            try:
                found = os.stat(path)
            except OSError:
                yield Entry(key, path, kind, -1, "")
                continue
            # Reading a pipe would never end.
            if stat.S_ISREG(found.st_mode):
                yield Entry(key, path, kind, found.st_size, str(found.st_mtime_ns))
            else:
                selection.skip("pipe(s) or device(s)")


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _names(folder: str) -> Iterator[tuple[str, str]]:
    """What a local folder holds: each name as text, and as it is; folders have a final slash, to sort as keys do."""
    with files.naming(folder), os.scandir(folder) as entries:
        for entry in entries:
            try:
                is_folder = entry.is_dir()
            except OSError:
                # A link to itself. Like one to nothing, it becomes a reject when it is read.
                is_folder = False
            name = entry.name + "/" * is_folder
            yield escaped(name), name


def _s3(fs: AbstractFileSystem, path: str, scheme: str, selection: Selection) -> Iterator[Entry]:
    bucket, folder, _ = fs.split_path(path)
    folder = folder.rstrip("/") + "/" if folder else ""
    objects: Iterator[tuple[Any, ...]] = _objects(fs, bucket, folder + selection.begins)
    if bucket.endswith(UNORDERED_BUCKET):
        objects = ordered(objects)
    for name, size, version in objects:
        key = name[len(folder) :]
        if not key or key.endswith("/"):
            continue
        if kind := selection.kind_of(key):
            yield Entry(key, f"{scheme}://{bucket}/{name}", kind, size, version)


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


def _other(root: str, selection: Selection) -> Iterator[Entry]:
    # A page over HTTP may name a file twice.
    found = (Entry(*next(same)) for _, same in groupby(ordered(_unordered(root, selection)), lambda file: file[0]))
    yield from with_versions(found) if is_web(root) else found


def _unordered(root: str, selection: Selection) -> Iterator[Entry]:
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
            elif key and (kind := selection.kind_of(key)):
                url = fs.unstrip_protocol(name)
                yield Entry(key, url, kind, *_described(url, info))


def _listing(fs: AbstractFileSystem, path: str) -> list[dict[str, Any]]:
    fs.invalidate_cache()
    listed: list[dict[str, Any]] = fs.ls(path, detail=True)
    fs.invalidate_cache()
    return listed
