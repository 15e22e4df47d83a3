"""Lists of inputs: a text file with a URL a line, or CSV or Parquet with a column ``url``.

A Parquet file with an image column holds images; one without, but with a column ``url``, is a list.

Lines are URLs, or paths relative to the list's folder; local absolute paths are allowed in local lists. Empty lines are
left out. A file's key is its path relative to the list's folder where it is in there, and else its host or bucket and
its path. User, password and query of a web address are left out. A hash stands in the place of a query's parameters
that are no signature and no credential, for they tell files apart; and of all of it where the path has no extension,
and there are no such. A URL that comes twice counts once; two URLs of one key (``s3://b/x`` and ``gs://b/x``, or two
signatures of one link) are refused.

The size and version of each are asked for, many at a time. One that is not there has size -1, and becomes a reject
when it is read. The list itself is sorted through a temporary file, so that any number of lines fits in memory.
"""

from __future__ import annotations

import csv
import io
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import unquote

import pyarrow.parquet as pq

from raypurify import storage
from raypurify.cleaning import footers
from raypurify.cleaning.names import stem
from raypurify.cleaning.places import Place
from raypurify.cleaning.streams import concurrently, ordered
from raypurify.cleaning.walks import ASKED_AT_ONCE, Seen, ask
from raypurify.data import files
from raypurify.data.base import DataError
from raypurify.data.columns import image_column
from raypurify.data.files import File
from raypurify.storage.published import encodable, short_hash, unsigned

TEXT = (".txt",)
TABLES = (".csv", ".tsv")
COLUMN = "url"


def is_text(url: str) -> bool:
    """Whether the name is that of a list in text or CSV."""
    return name_of(url).lower().endswith((*TEXT, *TABLES))


def is_list(file: File) -> bool:
    """Whether a file is a list, by its name or, for Parquet, by its columns."""
    if not name_of(file.url).lower().endswith(".parquet"):
        return is_text(file.url)
    footer = footers.footer(file.url, file.size)
    columns = footer.schema.to_arrow_schema() if footer else None
    # One that is no Parquet at all is taken for images: it becomes a reject when it is read.
    return columns is not None and image_column(columns) is None and COLUMN in columns.names


def files_in(file: File, *, output: str, skipped: Counter[str]) -> Iterator[Seen]:
    """The files that a list names, sorted by key.

    Args:
        file: the list.
        output: where the result goes: lines in there are refused.
        skipped: counts each ``duplicate``.

    Raises:
        DataError: the list can't be read, is empty, or has two files of one key.
        ValueError: a line is inside the output.
    """
    folder = storage.without_query(file.url).rpartition("/")[0]
    place = Place(output)
    records = ordered(_located(line, folder, file.url, place) for line in _lines(file))
    stats = concurrently(_stat, _unique(records, file.url, skipped), at_once=ASKED_AT_ONCE)
    found = False
    for (key, url), result in stats:
        found = True
        size, version = result or (-1, "")
        yield Seen(key=key, url=url, size=size, version=version)
    if not found:
        raise DataError(f"{file.url}: an empty list; expected a URL a line, or a column {COLUMN!r}")


def name_of(url: str) -> str:
    """The last part of a path or URL, without an HTTP query."""
    return storage.without_query(url).rpartition("/")[2]


def _lines(file: File) -> Iterator[str]:
    with files.naming(file.url), files.open_file(file.url) as opened:
        if name_of(file.url).lower().endswith(".parquet"):
            for batch in pq.ParquetFile(opened).iter_batches(4096, columns=[COLUMN], use_threads=False):
                yield from (str(value) for value in batch.column(0).to_pylist() if value)
            return
        try:
            with io.TextIOWrapper(opened, "utf-8-sig", newline="") as text:
                yield from (line for line in _of_text(text, file) if line)
        except UnicodeDecodeError as error:
            raise DataError(f"{file.url}: expected UTF-8: {error}") from error


def _of_text(text: Iterable[str], file: File) -> Iterator[str]:
    if name_of(file.url).lower().endswith(TEXT):
        yield from (line.rstrip("\r\n") for line in text)
        return
    reader = csv.DictReader(text, delimiter="\t" if name_of(file.url).lower().endswith(".tsv") else ",")
    if COLUMN not in (reader.fieldnames or ()):
        raise DataError(f"{file.url}: expected a column {COLUMN!r}, got {reader.fieldnames}")
    yield from (row[COLUMN] or "" for row in reader)


def _located(line: str, folder: str, list_url: str, output: Place) -> tuple[str, str]:
    """Key and URL of a line."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", line):
        url = storage.absolute(line)
    elif not line.startswith("/"):
        url = f"{folder}/{line}"
    elif storage.is_local(list_url):
        url = line
    else:
        raise DataError(f"{list_url}: {line!r}: expected a URL or a relative path, got a path on a disk")
    if "://" not in line and re.search(r"(^|/)\.{0,2}(/|$)", line):
        scheme, separator, path = url.rpartition("://")
        url = scheme + separator + posixpath.normpath(path)
    if output.holds(url):
        raise ValueError(f"{list_url}: {line!r} is inside the output: choose another output")
    return _key(url, folder), url


def _key(url: str, folder: str) -> str:
    is_web = url.startswith("http")
    key = url.removeprefix(folder + "/") if url.startswith(folder + "/") else url.rpartition("://")[2].lstrip("/")
    if not is_web:
        return encodable(key)
    path, mark, query = key.partition("?")
    host, slash, rest = path.partition("/")
    path = unquote(host.rpartition("@")[2] + slash + rest)
    return told_apart(path, query) if mark else path


def told_apart(path: str, query: str) -> str:
    """The key of a link: its path, with a hash of what of the query tells files apart.

    A signature changes with each signing, but behind a path without an extension there may be nothing else.
    """
    has_extension = "." in path.rpartition("/")[2]
    rest = unsigned(query) or ("" if has_extension else query)
    if not rest and has_extension:
        return path
    before = stem(path)
    return f"{before}~{short_hash(rest)}{path[len(before) :]}"


def _unique(records: Iterable[tuple[Any, ...]], list_url: str, skipped: Counter[str]) -> Iterator[tuple[str, str]]:
    before: tuple[str, str] | None = None
    for key, url in records:
        if before is None or key != before[0]:
            yield key, url
        elif url == before[1]:
            skipped["duplicate"] += 1
        else:
            raise DataError(f"{list_url}: {url} and {before[1]} have one key, {key!r}; clean them in runs of their own")
        before = key, url


def _stat(item: tuple[str, str]) -> tuple[int, str]:
    """Size and version of a file; -1 and none where it is not there."""
    _, url = item
    if storage.is_web(url):
        # One web server that refuses or is gone says nothing of the others.
        return ask(url)
    found = files.stat(url)
    return (found.size, found.version) if found else (-1, "")
