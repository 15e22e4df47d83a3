"""Writes on a condition: only where nothing is, or only over a known version. Of several at once, one succeeds.

Which places decide that by themselves:

- S3, by ``If-None-Match`` and ``If-Match`` (AWS, MinIO, Ceph, R2 and others that know them);
- a local or shared file system, by a hard link and by a lock of the file;
- Google Cloud Storage for :func:`create`, by the generation.

Elsewhere, also on an S3 server that answers NotImplemented, the file is looked at first and written then: two in the
same moment may both believe that they wrote it, and the last one stays. An S3 server that knows nothing of conditions
and does not say so acts as if none were set.

An answer can be lost after its request was done. What is there is then read, and counts as written by this call if it
is the same: let data say who wrote it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

from fsspec import AbstractFileSystem

from raypurify import storage
from raypurify.storage.retries import NoBucketError, code_of

T = TypeVar("T")


class _NoConditionsError(Exception):
    """The store has no writes under a condition."""


def create(url: str, data: bytes) -> bool:
    """Write a file only if nothing is there, and say whether it was written."""
    if storage.is_local(url):
        _, path = storage.filesystem(url)
        with storage.draft_beside(path) as (draft, file):
            file.write(data)
            file.close()
            return _linked(draft, path)
    try:
        return _on_s3(url, lambda fs, path: fs.put_if(path, data, IfNoneMatch="*")) is not None
    except _NoConditionsError:
        if storage.exists(url):
            return False
    mode = {"mode": "create"} if "gs" in storage.protocols(storage.filesystem(url)[0]) else {}
    try:
        storage.on_store(url, lambda fs, path: fs.pipe_file(path, data, **mode))
    except FileExistsError:
        return storage.read_bytes(url) == data
    return True


def read(url: str) -> tuple[bytes, str]:
    """A file, and what tells this version of it from others: its entity tag on S3, a hash elsewhere.

    Raises:
        FileNotFoundError: nothing is there; the message names the URL.
    """
    try:
        return _on_s3(url, lambda fs, path: cast(tuple[bytes, str], fs.read_version(path)))
    except _NoConditionsError:
        data = storage.read_bytes(url)
        return data, _hash(data)
    except NoBucketError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {url}") from None


def replace(url: str, data: bytes, version: str) -> str | None:
    """Write a file only over this version of it: the new version, or None where it is not there (any more)."""
    if storage.is_local(url):
        with _locked(url, version) as path:
            if path is None:
                return None
            with storage.replacing(path) as file:
                file.write(data)
            return _hash(data)
    try:
        return _on_s3(url, lambda fs, path: cast("str | None", fs.put_if(path, data, IfMatch=version)))
    except _NoConditionsError:
        if not _is_at(url, version):
            return None
    storage.write_bytes(url, data)
    return read(url)[1]


def remove(url: str, version: str) -> bool:
    """Remove a file only at this version of it, and say whether it was removed."""
    if storage.is_local(url):
        with _locked(url, version) as path:
            if path is not None:
                os.remove(path)
            return path is not None
    try:
        return _on_s3(url, lambda fs, path: bool(fs.delete_if(path, version)))
    except _NoConditionsError:
        if not _is_at(url, version):
            return False
    storage.remove(url)
    return True


def age(url: str) -> float | None:
    """Seconds since the file was written, by the clock of the place that keeps it; None where that is not told.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if storage.is_local(url):
        _, path = storage.filesystem(url)
        written = os.stat(path).st_mtime
        # A server of files has a clock of its own.
        with storage.draft_beside(path) as (draft, _):
            return os.stat(draft).st_mtime - written
    with contextlib.suppress(_NoConditionsError):
        return _on_s3(url, lambda fs, path: cast(float, fs.age(path)))
    return None


def _on_s3(url: str, operation: Callable[[AbstractFileSystem, str], T]) -> T:
    fs, path = storage.filesystem(url)
    if "s3" not in storage.protocols(fs):
        raise _NoConditionsError
    try:
        return operation(fs, path)
    except OSError as error:
        if code_of(error) in ("NotImplemented", "501"):
            raise _NoConditionsError from error
        raise


def _linked(draft: str, path: str) -> bool:
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def _locked(url: str, version: str) -> Iterator[str | None]:
    """The path of a local file at this version, while others wait; None where it is not (any more)."""
    import fcntl  # not on Windows

    _, path = storage.filesystem(url)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "r+b"))
        except FileNotFoundError:
            yield None
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        # Who had the lock before may have put another file in the place of this one.
        yield path if _is_the_same(file.fileno(), path) and _hash(file.read()) == version else None


def _is_the_same(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _is_at(url: str, version: str) -> bool:
    try:
        return read(url)[1] == version
    except FileNotFoundError:
        return False


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
