"""Files behind any fsspec URL: atomic writes, tables, JSON and the marks of finished work.

A local write goes to a hidden neighbour that is renamed, an object store's put is atomic by itself: a reader never sees
half a file. Credentials come from the environment or the store's own configuration, never from a URL or a flag;
:mod:`raypurify.storage.s3` lists the settings of S3. What a store fails at for a moment is tried again
(:mod:`raypurify.storage.retries`).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import os
import re
import shutil
import threading
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from typing import IO, Any, TypeVar, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from raypurify.storage import retries
from raypurify.storage.published import redacted
from raypurify.storage.retries import NoBucketError, RefusedError, UnavailableError

T = TypeVar("T")

SUCCESS = "_SUCCESS"
UNWRITABLE = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
)
"""Errors of a local place that cannot be written to until somebody mends it: full, read-only, a file, below a file."""
REQUESTS_AT_ONCE = 16
CHANGE_TIMES = ("mtime", "LastModified", "Last-Modified", "created")
"""What file systems call the time of a file's last change."""

CONNECT_TIMEOUT = 5
READ_TIMEOUT = 20
"""Seconds to reach an HTTP server, and to wait for its next bytes. :mod:`raypurify.storage.s3` has those of S3."""


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system that ``url`` names, and the path in it.

    That of S3 tries again what fails for a moment, also in ``open``, ``find`` and all else. Others do not by
    themselves: use the functions here, or :func:`on_store`.

    Raises:
        ValueError: an unknown scheme, or one whose package is not installed.
    """
    scheme = url.partition("://")[0]
    try:
        if scheme in ("s3", "s3a"):
            return _s3(url)
        options = _http_options() if scheme in ("http", "https") else {}
        if "::" in url and scheme in (url, "file", "http", "https"):
            # A name, and not one of fsspec's chains of file systems.
            fs = fsspec.filesystem("file" if scheme == url else scheme, **options)
            return fs, fs._strip_protocol(url)
        return cast(tuple[AbstractFileSystem, str], fsspec.core.url_to_fs(url, **options))
    except (ValueError, ImportError) as error:
        raise ValueError(f"cannot open {redacted(url)!r}: {redacted(str(error))}") from None


def _s3(url: str) -> tuple[AbstractFileSystem, str]:
    from raypurify.storage.s3 import S3

    # A client is dear and holds its connections: one a process, until the settings change.
    options = S3._get_kwargs_from_urls(url)
    variables = (item for item in sorted(os.environ.items()) if item[0].startswith("AWS_"))
    settings = (os.getpid(), *variables, repr(fsspec.config.conf.get("s3")), *options.items())
    with _client_lock:
        client = _client(S3, settings, **options)
    return client, client._strip_protocol(url)


_DRAFT = re.compile(r"\..*\.[0-9a-f]{32}", re.DOTALL)
_client_lock = threading.Lock()


@functools.lru_cache(maxsize=8)
def _client(kind: type[AbstractFileSystem], settings: tuple[object, ...], **options: Any) -> AbstractFileSystem:
    return kind(**options, skip_instance_cache=True)


def _http_options() -> dict[str, Any]:
    import aiohttp

    if "client_kwargs" in fsspec.config.conf.get("http", {}):
        return {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=READ_TIMEOUT)
    return {"client_kwargs": {"timeout": timeout}}


def on_store(url: str, operation: Callable[[AbstractFileSystem, str], T]) -> T:
    """``operation(filesystem, path)`` on the place ``url``, again after failures that pass.

    For S3 each request is retried, for Google Cloud Storage and Azure their own packages do it, for other remote stores
    the whole operation is: it must do no harm when done twice.

    Raises:
        RefusedError: access is denied, there is no such bucket, or the credentials are missing or expired; says which.
        UnavailableError: the store did not answer well within the budget.
        OSError: other failures, such as a FileNotFoundError, as they came.
    """
    fs, path = filesystem(url)
    if protocols(fs) & {"file", "local", "s3", "gs", "gcs", "abfs", "az", "adl"}:
        return operation(fs, path)
    return retries.call(lambda: operation(fs, path), url)


def protocols(fs: AbstractFileSystem) -> set[str]:
    """The schemes of a file system: ``{"s3", "s3a"}``."""
    return set(fs.protocol if isinstance(fs.protocol, tuple | list) else (fs.protocol,))


def is_local(url: str) -> bool:
    """Whether ``url`` names a path on this machine's own disk."""
    return "file" in protocols(filesystem(url)[0])


def is_web(url: str) -> bool:
    """Whether ``url`` is a link: that its host refuses or is gone says nothing of other links, and much of this one."""
    return url.startswith(("http://", "https://"))


def without_query(url: str) -> str:
    """``url`` without what follows the question mark of a link; of other places it is a part of the name."""
    return url.partition("?")[0] if is_web(url) else url


def absolute(url: str) -> str:
    """``url`` with a local path made absolute, so that it means the same in another working directory."""
    _, path = filesystem(url)
    return path if is_local(url) else url.rstrip("/")


def join(url: str, *parts: str) -> str:
    """``url`` with path parts appended."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def exists(url: str) -> bool:
    """Whether a file, or a folder with something in it, is at ``url``.

    Raises:
        RefusedError: the store does not say, or has no such bucket.
    """
    try:
        on_store(url, lambda fs, path: fs.info(path))
    except NoBucketError:
        raise
    except (FileNotFoundError, NotADirectoryError):  # the second one: nothing is below a file
        return False
    return True


def list_files(url: str, suffix: str = "") -> list[str]:
    """URLs of the files below ``url`` whose name ends in ``suffix``, sorted; none where there is no such folder."""

    def found(fs: AbstractFileSystem, path: str) -> list[str]:
        fs.invalidate_cache()
        names = sorted(name for name in fs.find(path) if name.endswith(suffix))
        return names if is_local(url) else [fs.unstrip_protocol(name) for name in names]

    return on_store(url, found)


def times_written(url: str, suffix: str = "") -> dict[str, float | None]:
    """The files of :func:`list_files`, and when each was written: seconds of the clock; None where that is not told."""

    def found(fs: AbstractFileSystem, path: str) -> dict[str, float | None]:
        fs.invalidate_cache()
        infos = sorted(fs.find(path, detail=True).items())
        return {fs.unstrip_protocol(name): _time_in(info) for name, info in infos if name.endswith(suffix)}

    return on_store(url, found)


def _time_in(info: Mapping[str, Any]) -> float | None:
    value = next((info[name] for name in CHANGE_TIMES if name in info), None)
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if isinstance(value, int | float) else None


def stem(url: str) -> str:
    """The name of the file at ``url``, without its folder and what follows the last dot."""
    return url.rpartition("/")[2].rpartition(".")[0]


def remove(url: str) -> None:
    """Remove the file or folder at ``url``, if it is there. ``*``, ``?`` and ``[`` mean themselves."""
    if exists(url):
        with contextlib.suppress(FileNotFoundError):
            on_store(url, _removed)


def _removed(fs: AbstractFileSystem, path: str) -> None:
    # But for local files, fsspec's own rm takes names for patterns.
    kinds = protocols(fs)
    if "file" in kinds:
        fs.rm(path, recursive=True)
    elif "s3" in kinds:
        fs.remove(path)
    else:
        found = fs.find(path, withdirs=True, detail=True)
        folders = [name for name, info in found.items() if info.get("type") == "directory"]
        files = {name for name in found if name not in folders} | ({path} if fs.isfile(path) else set())
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            deque(pool.map(fs.rm_file, files), maxlen=0)
        for folder in sorted(folders, reverse=True):
            with contextlib.suppress(FileNotFoundError):  # it was there for its files only
                fs.rmdir(folder)


def clear(url: str, *, keep: Collection[str]) -> None:
    """Remove all that is in the folder ``url``, but for the files with these names."""
    if not exists(url):
        return

    def children(fs: AbstractFileSystem, path: str) -> list[str]:
        fs.invalidate_cache()
        return [name.rstrip("/").rpartition("/")[2] for name in fs.ls(path, detail=False)]

    for name in on_store(url, children):
        if name not in keep:
            remove(join(url, name))


def is_draft(name: str) -> bool:
    """Whether a file of this name is one that is being written, or was when its process ended."""
    return _DRAFT.fullmatch(name) is not None


def remove_drafts(url: str) -> None:
    """Remove what writers that were killed have left below a local folder; object stores keep no such thing.

    Nobody else may be writing there.
    """
    if is_local(url):
        for folder, _, names in os.walk(filesystem(url)[1]):
            for name in names:
                if is_draft(name):
                    with contextlib.suppress(FileNotFoundError):
                        os.remove(os.path.join(folder, name))


def write_bytes(url: str, data: bytes, content_type: str | None = None) -> None:
    """Write a file at once: a reader sees the old file or the new one, never a part.

    Args:
        content_type: media type that S3 and Google Cloud Storage keep with the object, such as ``image/png``.
    """
    if is_local(url):
        _, path = filesystem(url)
        with replacing(path) as file:
            file.write(data)
    else:
        on_store(url, lambda fs, path: fs.pipe_file(path, data, **_typed(fs, content_type)))


def write_file(url: str, file: IO[bytes], content_type: str | None = None) -> None:
    """Write what a seekable local file holds from its start, of any size, as :func:`write_bytes` does.

    Only local file systems and object stores keep a half-written file from its readers.
    """
    if is_local(url):
        _, path = filesystem(url)
        with replacing(path) as target:
            file.seek(0)
            shutil.copyfileobj(file, target, length=2**20)
        return

    def put(fs: AbstractFileSystem, path: str) -> None:
        file.seek(0)
        target = fs.open(path, "wb", **_typed(fs, content_type))
        try:
            shutil.copyfileobj(file, target, length=2**20)
            target.close()
        except BaseException:
            # Closing it, as the collector would, makes an object of what there is.
            target.closed = True
            with contextlib.suppress(Exception):
                target.discard()
            raise

    on_store(url, put)


def _typed(fs: AbstractFileSystem, content_type: str | None) -> dict[str, str]:
    kinds = protocols(fs)
    if content_type is None or not kinds & {"s3", "gs"}:
        return {}
    return {"ContentType" if "s3" in kinds else "content_type": content_type}


@contextlib.contextmanager
def replacing(path: str) -> Iterator[IO[bytes]]:
    """What is written in the block takes the place of a local file, at once, when the block ends without an error."""
    with draft_beside(path) as (draft, file):
        yield file
        file.close()
        os.replace(draft, path)


@contextlib.contextmanager
def draft_beside(path: str) -> Iterator[tuple[str, IO[bytes]]]:
    """A hidden neighbour of a local file, and its name, to be renamed. The file's folder is made."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    # Not the whole name: with the rest it could be longer than names may be.
    draft = os.path.join(folder, f".{name[:32]}.{uuid.uuid4().hex}")
    try:
        with open(draft, "wb") as file:
            yield draft, file
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(draft)


def read_bytes(url: str) -> bytes:
    """The whole file at ``url``.

    Raises:
        FileNotFoundError: nothing is there; the message names the URL.
        RefusedError, UnavailableError: see :func:`on_store`.
    """
    try:
        return on_store(url, lambda fs, path: cast(bytes, fs.cat_file(path)))
    except NoBucketError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {redacted(url)}") from None


def read_many(urls: Iterable[str], *, at_once: int = 32) -> Iterator[tuple[int, bytes | Exception]]:
    """The content of many files, in their order, read ``at_once`` at a time.

    At most ``at_once`` files are held before they are taken, and ``urls`` is drawn as far ahead as that.

    Yields:
        The number of the URL, and its bytes, or the error that tells that this one file cannot be had.

    Raises:
        RefusedError: access is denied, or the bucket or the credentials are wrong: the others would fail too.
        UnavailableError: the store did not answer well within the budget, which says nothing of the file.
    """
    if at_once < 1:
        raise ValueError(f"at_once = {at_once}: expected at least 1")
    pool = ThreadPoolExecutor(at_once)
    waiting: deque[tuple[int, Future[bytes | Exception]]] = deque()
    try:
        for number, url in enumerate(urls):
            if len(waiting) == at_once:
                first, future = waiting.popleft()
                yield first, future.result()
            waiting.append((number, pool.submit(_content, url)))
        for last, future in waiting:
            yield last, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _content(url: str) -> bytes | Exception:
    try:
        return read_bytes(url)
    except (RefusedError, UnavailableError) as error:
        if is_web(url):
            return error
        raise
    except Exception as error:
        return error


def write_json(url: str, value: Any) -> None:
    """Write ``value`` as indented JSON with a final newline."""
    # JSON writes half a pair of surrogates, as in a name that is no UTF-8, just as Python's backslashes do.
    write_bytes(url, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def read_json(url: str) -> Any:
    """The JSON value at ``url``.

    Raises:
        ValueError: the file is not JSON; the message names it.
    """
    try:
        return json.loads(read_bytes(url))
    except json.JSONDecodeError as error:
        raise ValueError(f"{url} is not JSON: {error}") from error


def write_table(url: str, table: pa.Table) -> None:
    """Write one Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(url, buffer.getvalue())


def read_table(url: str, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file."""
    return _parquet(url).read(columns, use_threads=False)


def read_tables(urls: Iterable[str], schema: pa.Schema) -> pa.Table:
    """The columns of ``schema`` in several Parquet files, in the order of ``urls``; no row for no file.

    A nullable column that a file lacks, as one of an earlier version may, is null.
    """

    def read(url: str) -> pa.Table:
        file = _parquet(url)
        known = [name for name in schema.names if name in file.schema_arrow.names]
        return with_columns(file.read(known, use_threads=False), schema)

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        tables = list(pool.map(read, urls))
    return pa.concat_tables([schema.empty_table(), *tables])


def _parquet(url: str) -> pq.ParquetFile:
    """A Parquet file in memory, to be read by the calling thread alone.

    A thread of Arrow's that lets a Python object go while the interpreter ends would abort the process.
    """
    return pq.ParquetFile(pa.BufferReader(read_bytes(url)))


def with_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """``table`` as ``schema``; a nullable column that it lacks is null.

    Raises:
        KeyError: it lacks another column.
    """
    for field in schema:
        if field.nullable and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names).cast(schema)


def mark_success(url: str) -> None:
    """Write the mark that says that everything in the folder ``url`` is there."""
    write_bytes(join(url, SUCCESS), b"")


def is_success(url: str) -> bool:
    """Whether the run at ``url`` was finished."""
    return exists(join(url, SUCCESS))
