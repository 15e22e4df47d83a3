"""Files of a dataset at any fsspec URL: stat, list, read a range or a footer, unpack once a node into the cache folder.

Credentials come from the environment, as each fsspec filesystem reads them. What a store fails at for a moment is tried
again (:mod:`raypurify.storage.retries`), but for reads from an open file of a store other than S3 (:func:`open_file`).
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from fsspec import AbstractFileSystem
from numpy.typing import NDArray

from raypurify import storage
from raypurify.data.base import DataError
from raypurify.storage import retries
from raypurify.storage.published import redacted
from raypurify.storage.retries import NoBucketError, RefusedError, UnavailableError

HASHED = 64 * 2**20
"""Bytes: a local file up to this size is identified by a hash of all its content."""

LARGEST_GAP = 64 * 2**10
"""Bytes: records that lie no farther apart are fetched by one request."""

LARGEST_REQUEST = 8 * 2**20
"""Bytes that one request for records fetches at most."""

SAMPLED = 64 * 2**10
"""Bytes at the start and at the end of any other file that identify it, with its size and entity tag."""

TAIL = 1 << 16
"""Bytes that are read first of a Parquet file's end: most footers are shorter."""
SHORTEST_PARQUET = 12
"""Bytes of the shortest Parquet file: two marks and the length of its footer."""


class StoreError(DataError):
    """The store refuses, or does not answer. It tells nothing of the data, which may be well."""


OUTAGES = (RefusedError, UnavailableError, StoreError)
"""What a store says that says nothing of the file: no reason to reject it, but on the web."""
TROUBLE = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass(frozen=True, kw_only=True)
class File:
    """A file and what tells one version of it from another."""

    url: str
    size: int
    version: str
    """Entity tag or time of change: it changes when the file does, but also with the place."""
    etag: str

    @property
    def name(self) -> str:
        """The last part of the path, without the query of a link, which may be signed."""
        return storage.without_query(self.url).rstrip("/").rpartition("/")[2]

    @property
    def key(self) -> str:
        """The name without ``.gz``, so that ids do not depend on the compression."""
        return self.name.removesuffix(".gz")


def cache_folder() -> Path:
    """``RAYPURIFY_CACHE``, or ``~/.cache/raypurify``."""
    return Path(os.environ.get("RAYPURIFY_CACHE") or Path.home() / ".cache" / "raypurify").expanduser().absolute()


def described(url: str, info: dict[str, Any]) -> File:
    """A file as a filesystem's listing tells of it."""
    etag = str(info.get("ETag") or info.get("etag") or "").strip('"')
    changed = next((info[name] for name in storage.CHANGE_TIMES if info.get(name)), "")
    return File(url=url, size=int(info["size"] or 0), version=etag or str(changed), etag=etag)


def stat(url: str) -> File | None:
    """The file at ``url``, or None where there is no file (nothing at all, or a folder).

    Raises:
        DataError: the place cannot be reached, or refuses.
    """
    with naming(url):
        try:
            info = storage.on_store(url, lambda fs, path: cast(dict[str, Any], fs.info(path)))
        except NoBucketError:
            raise
        except FileNotFoundError:
            return None
        if info["type"] != "file":
            return None
        if info.get("size") is None:
            info["size"] = len(storage.read_bytes(url))
        return described(url, info)


def list_folder(url: str) -> tuple[list[File], list[str]]:
    """Files, and names of folders, right under ``url``, each sorted by name; hidden ones are left out.

    Raises:
        DataError: the folder does not exist, or cannot be listed.
    """

    def listed(fs: AbstractFileSystem, path: str) -> tuple[list[dict[str, Any]], str]:
        fs.invalidate_cache()
        return fs.ls(path, detail=True), path

    with naming(url):
        entries, path = storage.on_store(url, listed)
    files, folders = [], []
    for entry in entries:
        name = entry["name"].rstrip("/").rpartition("/")[2]
        if name.startswith((".", "_")) or entry["name"].rstrip("/") == path.rstrip("/"):
            continue
        if entry["type"] == "directory" or entry["name"].endswith("/"):
            folders.append(name)
        elif entry.get("size") is None:
            # Plain HTTP listings carry no sizes, nor a word on which links are folders.
            found = stat(storage.join(url, name))
            files.append(found) if found else folders.append(name)
        else:
            files.append(described(storage.join(url, name), entry))
    return sorted(files, key=lambda file: file.name), sorted(folders)


@dataclass(frozen=True, kw_only=True)
class Place:
    """What lies at a URL where a dataset is looked for: one file, or a folder."""

    url: str
    files: list[File]
    """The file, or those right in the folder."""
    folders: list[str]
    """Names of the folders right in the folder."""
    is_folder: bool
    classes: int | None
    """Number of classes of the dataset, where its name tells it."""


def places(url: str, *, classes: int | None = None) -> Iterator[Place]:
    """What lies at ``url``. Over HTTP a folder looks like a file, so that both come.

    Raises:
        DataError: nothing is there, or it cannot be reached.
    """
    file = stat(url)
    if file:
        yield Place(url=url, files=[file], folders=[], is_folder=False, classes=classes)
    if file is None or storage.is_web(url):
        yield folder_at(url, classes=classes)


def folder_at(url: str, *, classes: int | None = None) -> Place:
    """The folder at ``url``, as :func:`list_folder` tells of it."""
    listed, folders = list_folder(url)
    return Place(url=url, files=listed, folders=folders, is_folder=True, classes=classes)


@contextmanager
def naming(url: str) -> Iterator[None]:
    """Raise what a filesystem raises as a DataError that names the URL, without its query, which may be signed.

    Raises:
        StoreError: the store refuses or does not answer.
        DataError: any other failure.
    """
    url = redacted(url)
    try:
        yield
    except DataError:
        raise
    except (RefusedError, UnavailableError) as error:
        raise StoreError(str(error)) from error
    except Exception as error:
        # Filesystems raise the errors of the libraries below them: botocore's, aiohttp's, ...
        hides = redacted(str(error)) != str(error)
        raise DataError(_reason(url, error)) from (None if hides else error)


def is_passing(error: BaseException, url: str) -> bool:
    """Whether an error, or what it came from, says nothing of the file: its store or this machine is in trouble."""
    if isinstance(error, MemoryError) or retries.is_transient(error):
        return True
    if isinstance(error, OUTAGES) and not storage.is_web(url):
        return True
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "errno", None) not in TROUBLE:
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def _reason(url: str, error: Exception) -> str:
    reason = redacted(str(error))
    if isinstance(error, FileNotFoundError):
        return f"{url}: there is no such file or folder"
    if isinstance(error, PermissionError) and storage.is_local(url):
        return f"{url}: permission denied: this user may not read it"
    if isinstance(error, PermissionError):
        return f"{url}: access is denied ({reason}); check the credentials in the environment"
    if isinstance(error, ImportError):
        return f"{url}: {reason}"
    return f"{url}: cannot be read: {type(error).__name__}: {reason}"


def read_range(url: str, start: int, stop: int) -> bytes:
    """Bytes ``start`` to ``stop`` of a file.

    Raises:
        DataError: the file ends before ``stop``, or cannot be read.
    """
    with naming(url):
        if storage.is_local(url):
            with open(url, "rb") as file:
                file.seek(start)
                data = file.read(stop - start)
        else:
            data = storage.on_store(url, lambda fs, path: cast(bytes, fs.cat_file(path, start=start, end=stop)))
            if len(data) > stop - start:
                # An HTTP server that does not know ranges sends the whole file.
                data = data[start:stop]
    if len(data) < stop - start:
        raise DataError(
            f"{url}: truncated: expected {stop - start} bytes at offset {start}, got {len(data)}; fetch the file again"
        )
    return data


def parquet_footer(url: str, size: int) -> pq.FileMetaData | None:
    """The footer of a Parquet file, or None where none can be read or made out: its reader will say why.

    What is read and what is parsed are apart, so that a network's failure is not taken for a damaged file.

    Args:
        size: of the file in bytes; -1 where that is not known.

    Raises:
        DataError: the store refuses or does not answer, or this machine is in trouble; for a link, its reader says so.
    """
    try:
        return pq.read_metadata(pa.BufferReader(_tail(url, size)))
    except DataError as error:
        if is_passing(error, url):
            raise
        return None
    except (pa.ArrowException, OSError):
        return None


def _tail(url: str, size: int) -> bytes:
    """The end of a Parquet file, as far as its footer reaches."""
    if size < 0:
        found = stat(url)
        size = found.size if found else 0
    if size < SHORTEST_PARQUET:
        return b""
    tail = read_range(url, max(0, size - TAIL), size)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    return read_range(url, size - length, size) if len(tail) < length <= size else tail


def read_records(url: str, header: int, size: int, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Some of the records of ``size`` bytes that follow the first ``header`` bytes of a file: (len(rows), size) uint8.

    Args:
        rows: numbers of the records. Those that lie near each other are fetched together.

    Raises:
        DataError: the file ends before them, or cannot be read.
    """
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    span = np.diff(ascending, prepend=-1) * size > LARGEST_GAP
    block = ascending // max(1, LARGEST_REQUEST // size)
    starts = np.flatnonzero(span | (np.diff(block, prepend=-1) != 0))
    stops = np.append(starts[1:], len(rows))
    records = np.empty((len(rows), size), np.uint8)

    def fetch(start: int, stop: int) -> None:
        first, last = int(ascending[start]), int(ascending[stop - 1]) + 1
        data = np.frombuffer(read_range(url, header + first * size, header + last * size), np.uint8)
        records[order[start:stop]] = data.reshape(-1, size)[ascending[start:stop] - first]

    if len(starts) <= 1 or storage.is_local(url):
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=False):
            fetch(start, stop)
    else:
        with ThreadPoolExecutor(storage.REQUESTS_AT_ONCE) as pool:
            list(pool.map(fetch, starts.tolist(), stops.tolist()))
    return records


def open_file(url: str) -> IO[bytes]:
    """A seekable file for reading.

    Reads from it are tried again on S3. Other remote stores' are not, but for what their own packages do.
    """
    with naming(url):
        fs, path = storage.filesystem(url)
        if url.startswith("http"):
            head = storage.on_store(url, lambda fs, path: cast(bytes, fs.cat_file(path, start=0, end=1)))
            if len(head) > 1:
                # A server that does not know ranges has sent the whole file already.
                return io.BytesIO(head)
        return cast(IO[bytes], fs.open(path, "rb"))


def content_identity(file: File) -> str:
    """What identifies the content of a file: a hash of it, or, where that is dear, of its size, tag and both ends."""
    digest = hashlib.sha256(f"{file.size}".encode())
    if storage.is_local(file.url) and file.size <= HASHED:
        digest.update(read_range(file.url, 0, file.size))
        return digest.hexdigest()
    digest.update(file.etag.encode())
    digest.update(read_range(file.url, 0, min(SAMPLED, file.size)))
    digest.update(read_range(file.url, max(0, file.size - SAMPLED), file.size))
    return digest.hexdigest()


def inflated_size(file: File) -> int:
    """Bytes that a gzip file holds when inflated. Read off its trailer; see :func:`inflated` for the exact check."""
    return int.from_bytes(read_range(file.url, max(0, file.size - 4), file.size), "little")


def inflated(url: str, version: str) -> str:
    """Local path of the inflated content of the gzip file at ``url``: made once a node, kept in the cache folder.

    Raises:
        DataError: the file is cut off or damaged.
    """
    return unpacked(url, version, _inflate)


def unpacked(url: str, version: str, unpack: Callable[[str, Path], None]) -> str:
    """Local path of what ``unpack(url, path)`` makes of a file: made once a node, kept in the cache folder."""
    identity = hashlib.sha256(f"{unpack.__module__}.{unpack.__qualname__}\n{url}\n{version}".encode()).hexdigest()[:32]
    target = cache_folder() / "unpacked" / identity
    with naming(url):
        make_once(target, lambda draft: unpack(url, draft))
    return str(target)


def make_once(target: Path, make: Callable[[Path], None]) -> None:
    """Have ``make(draft)`` write a file or folder, and rename it to ``target``, unless that is there: it is whole.

    Several processes of a node take turns.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    with FileLock(target.with_name(f".{target.stem}.lock")):
        try:
            if not target.exists():
                make(draft)
                os.replace(draft, target)
        except OSError:
            # Where locks do not hold, another process may have been there first, and has made the same.
            if not target.exists():
                raise
        finally:
            if draft.is_dir():
                shutil.rmtree(draft, ignore_errors=True)
            else:
                draft.unlink(missing_ok=True)


def _inflate(url: str, path: Path) -> None:
    with open(path, "wb") as out, inflating(url, out.tell) as stream:
        shutil.copyfileobj(stream, out, length=2**20)


@contextmanager
def inflating(url: str, position: Callable[[], int]) -> Iterator[IO[bytes]]:
    """The inflated content of a gzip file, as a stream.

    Args:
        position: how far the content has been read, for the message.

    Raises:
        DataError: the file is cut off or damaged; names the file and the offset.
    """
    try:
        with open_file(url) as packed, gzip.GzipFile(fileobj=packed) as stream:
            yield cast(IO[bytes], stream)
    except EOFError as error:
        raise DataError(
            f"{url}: truncated: the gzip stream ends early, near offset {position()} of the inflated content; "
            "fetch the file again"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{url}: damaged gzip stream, near offset {position()} of the inflated content: {error}; "
            "fetch the file again"
        ) from error
