"""What is to be cleaned: the images, Parquet files and tars at an input, listed as a stream in the order of their keys.

An input is a path or URL of

- a **folder**: files at any depth, of the extensions in ``KINDS``, in upper or lower case. Others are counted by their
  extension. Names that begin with a dot, and folders, Parquet files and tars whose names begin with an underscore, are
  hidden (an image's name may: cameras write ``_DSC0001.JPG``): they are counted, what is in hidden folders is not, and
  nor are the empty objects that stand for folders. Pipes and devices are counted;
- a **glob**: ``s3://bucket/**/*.png`` and the like (``*``, ``?``, ``[...]``; ``**`` is any depth). Over HTTP a question
  mark begins a query. What is there under that very name goes before a glob;
- **one file**;
- a **list** of files: text with a URL a line, or CSV, TSV or Parquet with a column ``url``. A Parquet file with an
  image column holds images, whatever its other columns.

An image file is known by its name alone: one that holds no image becomes a reject when it is read.

A list's lines are URLs, or paths relative to its folder; local absolute paths are allowed in local lists. Empty lines
are left out. A file's key is its path relative to the list's folder where it is in there, and else its host or bucket
and its path. User, password and query of a web address are left out. A hash stands in the place of a query's
parameters that are no signature and no credential, for they tell files apart; and of all of it where the path has no
extension, and there are no such. A URL that comes twice counts once; two URLs of one key (``s3://b/x`` and
``gs://b/x``, or two signatures of one link) are refused.

The size and version of each are asked for, many at a time. One that is not there has size -1, and becomes a reject
when it is read. The list itself is sorted through a temporary file, so that any number of lines fits in memory.
"""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import unquote

import pyarrow.parquet as pq

from raypurify import storage
from raypurify.cleaning.entries import KINDS, Entry, kind_of
from raypurify.cleaning.folders import Selection, files_below, with_versions
from raypurify.cleaning.names import stem
from raypurify.data import files
from raypurify.data.base import DataError
from raypurify.data.columns import image_column
from raypurify.data.files import File
from raypurify.storage.bounded import ordered
from raypurify.storage.published import encodable, redacted, short_hash, unsigned

EXPECTED = f"files that end in {', '.join(KINDS)}"
TEXT = ".txt"
TABLES = (".csv", ".tsv")
COLUMN = "url"


def listed(url: str, *, output: str, skipped: Counter[str] | None = None) -> Iterator[Entry]:
    """The files at an input, sorted by the UTF-8 bytes of their keys, each key once.

    The memory that it takes does not grow with their number (but see :mod:`raypurify.cleaning.folders` on other
    stores).

    Args:
        output: where the result goes: an input in there is refused.
        skipped: counts what is left alone: files that are no input by their extension (``.json``), hidden files and
            folders, pipes and devices, and ``duplicate`` lines of a list.

    Raises:
        DataError: nothing is there, nothing in it can be cleaned, or a list is not as it should be.
        ValueError: the input and the output are not apart.
        StoreError: the store refuses, or does not answer.
    """
    check_apart(url, output)
    skipped = Counter() if skipped is None else skipped
    where = storage.absolute(url)
    glob = _glob(where)
    if glob:
        root, pattern = glob
        return _below(root, Selection(skipped, pattern), url, output)
    file = None if url.endswith("/") else files.stat(where)
    if file is None or (storage.is_web(where) and kind_of(file.name) is None and not _is_text(file.name)):
        return _below(where, Selection(skipped), url, output)
    if _is_list(file):
        return _of_list(file, output, skipped)
    kind = kind_of(file.name)
    if kind is None:
        raise DataError(f"{where}: expected a folder, or one of the {EXPECTED}, or a list (.txt, .csv, .parquet)")
    query = where.partition("?")[2] if storage.is_web(where) else ""
    return iter((Entry(_told_apart(encodable(file.name), query), where, kind, file.size, file.version),))


def check_apart(url: str, output: str) -> None:
    """Check that a run does not read what it writes.

    Places are told apart by their store's scheme and their path. The same bucket by two endpoints, or one disk mounted
    twice, are not recognised.

    Raises:
        ValueError: the output is in the input, the input in the output, or they are the same.
    """
    glob = _glob(storage.absolute(url))
    root = glob[0] if glob else url
    if _place(output).startswith(_place(root)):
        message = (
            f"the output {output} is inside the input {root}: its images would be inputs; choose a place beside it"
        )
        raise ValueError(redacted(message))
    if _place(root).startswith(_place(output)):
        raise ValueError(redacted(f"the input {url} is inside the output {output}: choose another output"))


def _place(url: str) -> str:
    """Where a folder or file is, whether or not it exists: the places of all that is in it begin with its own.

    Symbolic links on the way to a local one are resolved.
    """
    fs, path = storage.filesystem(url)
    path = os.path.realpath(path) if storage.is_local(url) else path
    return f"{' '.join(sorted(storage.protocols(fs)))}: {path.rstrip('/')}/"


def _glob(where: str) -> tuple[str, str] | None:
    """Folder and pattern of a glob; None where it is none, or something has that very name."""
    found = re.search(r"[*[]" if where.startswith("http") else r"[*?[]", where)
    if not found:
        return None
    with files.naming(where):
        if storage.exists(where):
            return None
    root = where[: found.start()].rpartition("/")[0]
    if root.endswith(":/") or not root:
        raise ValueError(f"{redacted(where)}: a glob needs a bucket or a folder before its first wildcard")
    return root, where[len(root) + 1 :]


def _below(root: str, selection: Selection, url: str, output: str) -> Iterator[Entry]:
    is_empty = True
    for file in files_below(root, selection, output):
        is_empty = False
        yield file
    if is_empty:
        others = ", ".join(f"{count} of {extension}" for extension, count in selection.skipped.most_common(5))
        raise DataError(f"{url}: nothing to clean; expected {EXPECTED}, found {others or 'none'}")


def _is_text(name: str) -> bool:
    """Whether the name is that of a list in text or CSV."""
    return name.lower().endswith((TEXT, *TABLES))


def _is_list(file: File) -> bool:
    """Whether a file is a list, by its name or, for Parquet, by its columns."""
    if not file.name.lower().endswith(".parquet"):
        return _is_text(file.name)
    footer = files.parquet_footer(file.url, file.size)
    columns = footer.schema.to_arrow_schema() if footer else None
    # One that is no Parquet at all is taken for images: it becomes a reject when it is read.
    return columns is not None and image_column(columns) is None and COLUMN in columns.names


def _of_list(file: File, output: str, skipped: Counter[str]) -> Iterator[Entry]:
    """The files that a list names."""
    folder = storage.without_query(file.url).rpartition("/")[0]
    place = _place(output)
    records = ordered(_located(line, folder, file.url, place) for line in _lines(file))
    unique = _unique(records, file.url, skipped)
    is_empty = True
    # A list says what its files are: a name without an extension is an image's.
    for found in with_versions(Entry(key, url, kind_of(key) or "image", -1, "") for key, url in unique):
        is_empty = False
        yield found
    if is_empty:
        raise DataError(f"{file.url}: an empty list; expected a URL a line, or a column {COLUMN!r}")


def _lines(file: File) -> Iterator[str]:
    name = file.name.lower()
    with files.naming(file.url), files.open_file(file.url) as opened:
        if name.endswith(".parquet"):
            for batch in pq.ParquetFile(opened).iter_batches(4096, columns=[COLUMN], use_threads=False):
                yield from (str(value) for value in batch.column(0).to_pylist() if value)
            return
        try:
            with io.TextIOWrapper(opened, "utf-8-sig", newline="") as text:
                lines = (line.rstrip("\r\n") for line in text) if name.endswith(TEXT) else _column(text, file)
                yield from (line for line in lines if line)
        except UnicodeDecodeError as error:
            raise DataError(f"{file.url}: expected UTF-8: {error}") from error


def _column(text: Iterable[str], file: File) -> Iterator[str]:
    reader = csv.DictReader(text, delimiter="\t" if file.name.lower().endswith(".tsv") else ",")
    if COLUMN not in (reader.fieldnames or ()):
        raise DataError(f"{file.url}: expected a column {COLUMN!r}, got {reader.fieldnames}")
    yield from (row[COLUMN] or "" for row in reader)


def _located(line: str, folder: str, list_url: str, output: str) -> tuple[str, str]:
    """Key and URL of a line; ``output`` is the place of the output."""
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
    if _place(url).startswith(output):
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
    return _told_apart(path, query) if mark else path


def _told_apart(path: str, query: str) -> str:
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
