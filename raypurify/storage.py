"""Files behind any fsspec URL: atomic writes, tables, JSON and the marks of finished work.

A local write goes to a hidden neighbour that is renamed, an object store's put is atomic by itself: a reader never sees
half a file. Credentials come from the environment or the store's own configuration, never from a URL or a flag.
"""

from __future__ import annotations

import io
import json
import os
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

SUCCESS = "_SUCCESS"
READS_AT_ONCE = 16


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system that ``url`` names, and the path in it.

    Raises:
        ValueError: an unknown scheme, or one whose package is not installed.
    """
    try:
        return cast(tuple[AbstractFileSystem, str], fsspec.core.url_to_fs(url))
    except (ValueError, ImportError) as error:
        raise ValueError(f"cannot open {url!r}: {error}") from error


def is_local(url: str) -> bool:
    """Whether ``url`` names a path on this machine's own disk."""
    fs, _ = filesystem(url)
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def absolute(url: str) -> str:
    """``url`` with a local path made absolute, so that it means the same in another working directory."""
    _, path = filesystem(url)
    return path if is_local(url) else url.rstrip("/")


def join(url: str, *parts: str) -> str:
    """``url`` with path parts appended."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def exists(url: str) -> bool:
    """Whether a file, or a folder with something in it, is at ``url``."""
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def list_files(url: str, suffix: str = "") -> list[str]:
    """URLs of the files below ``url`` whose name ends in ``suffix``, sorted; none where there is no such folder."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    names = sorted(name for name in fs.find(path) if name.endswith(suffix))
    return names if is_local(url) else [fs.unstrip_protocol(name) for name in names]


def remove(url: str) -> None:
    """Remove the file or folder at ``url``, if it is there."""
    fs, path = filesystem(url)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def write_bytes(url: str, data: bytes) -> None:
    """Write a file at once: a reader sees the old file or the new one, never a part."""
    fs, path = filesystem(url)
    if not is_local(url):
        fs.pipe_file(path, data)
        return
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}")
    with open(temporary, "wb") as file:
        file.write(data)
    os.replace(temporary, path)


def read_bytes(url: str) -> bytes:
    """The whole file at ``url``.

    Raises:
        FileNotFoundError: nothing is there; the message names the URL.
    """
    fs, path = filesystem(url)
    try:
        return cast(bytes, fs.cat_file(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file {url}") from error


def write_json(url: str, value: Any) -> None:
    """Write ``value`` as indented JSON with a final newline."""
    write_bytes(url, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


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
    return pq.read_table(io.BytesIO(read_bytes(url)), columns=columns)


def read_tables(urls: Iterable[str], schema: pa.Schema) -> pa.Table:
    """The columns of ``schema`` in several Parquet files, in the order of ``urls``; no row for no file."""
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        tables = list(pool.map(lambda url: read_table(url, schema.names).cast(schema), urls))
    return pa.concat_tables([schema.empty_table(), *tables])


def mark_success(url: str) -> None:
    """Write the mark that says that everything in the folder ``url`` is there."""
    write_bytes(join(url, SUCCESS), b"")


def is_success(url: str) -> bool:
    """Whether the run at ``url`` was finished."""
    return exists(join(url, SUCCESS))
