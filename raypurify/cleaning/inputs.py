"""What is to be cleaned: the images, Parquet files and tars at an input, listed as a stream in the order of their keys.

An input is a path or URL of

- a **folder**: files at any depth, of the extensions in ``KINDS``, in upper or lower case. Others are counted by their
  extension. Names that begin with a dot, and folders, Parquet files and tars whose names begin with an underscore, are
  hidden (an image's name may: cameras write ``_DSC0001.JPG``): they are counted, what is in hidden folders is not, and
  nor are the empty objects that stand for folders. Pipes and devices are counted;
- a **glob**: ``s3://bucket/**/*.png`` and the like (``*``, ``?``, ``[...]``; ``**`` is any depth). Over HTTP a question
  mark begins a query. What is there under that very name goes before a glob;
- **one file**;
- a **list** of files: see :mod:`raypurify.cleaning.lists`.

An image file is known by its name alone: one that holds no image becomes a reject when it is read.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from fsspec.utils import glob_translate

from raypurify import images, storage
from raypurify.cleaning import lists, walks
from raypurify.cleaning.base import Kind
from raypurify.cleaning.places import Place
from raypurify.data import files
from raypurify.data.base import DataError
from raypurify.data.files import File
from raypurify.storage.published import encodable, redacted

KINDS: dict[str, Kind] = {
    **dict.fromkeys((f".{extension}" for extension in sorted(images.EXTENSIONS)), "image"),
    ".parquet": "parquet",
    ".tar": "tar",
    ".tar.gz": "tar",
    ".tgz": "tar",
}
"""What a file is, by the end of its name in lower case."""

EXPECTED = f"files that end in {', '.join(KINDS)}"

HIDDEN_FILES, HIDDEN_FOLDERS = "hidden file(s)", "hidden folder(s)"
"""What is left alone for its name, as it is counted."""

EXTENSIONS_COUNTED = 100
"""Other extensions that are counted apart; those after them are counted together, under ``others``."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One file of the input."""

    key: str
    """Relative to the input's root. Of a list's files: relative to the list, or else host or bucket and path."""
    url: str
    """Absolute path or URL, to be opened as it is: ``*``, ``[``, ``?``, ``#`` and ``%`` mean themselves."""
    kind: Kind
    size: int
    """Bytes; -1 where that is not known, or nothing is there."""
    version: str
    """Entity tag or time of change; empty where that is not known."""


def listed(url: str, *, output: str, skipped: Counter[str] | None = None) -> Iterator[Listed]:
    """The files at an input, sorted by the UTF-8 bytes of their keys, each key once.

    The memory that it takes does not grow with their number (but see :mod:`raypurify.cleaning.walks` on other stores).

    Args:
        url: the input.
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
        begins = re.split(r"[*?[]", pattern, maxsplit=1)[0]
        return _below(root, Selection(skipped, pattern), url, output, begins=begins)
    file = None if url.endswith("/") else _stat(where)
    if file is None or (
        where.startswith("http") and kind_of(lists.name_of(where)) is None and not lists.is_text(where)
    ):
        return _below(where, Selection(skipped), url, output)
    if lists.is_list(file):
        return _of_list(file, output, skipped)
    return iter((_single(file),))


def absolute(url: str) -> str:
    """An input that means the same in another working directory; a final slash, which makes it a folder, stays."""
    return storage.absolute(url) + "/" * url.endswith("/")


def kind_of(name: str) -> Kind | None:
    """What a file of this name is taken for; None where it is no input."""
    name = name.lower()
    return next((kind for extension, kind in KINDS.items() if name.endswith(extension)), None)


def check_apart(url: str, output: str) -> None:
    """Check that a run does not read what it writes.

    See :class:`raypurify.cleaning.places.Place` for what is not recognised.

    Raises:
        ValueError: the output is in the input, the input in the output, or they are the same.
    """
    glob = _glob(storage.absolute(url))
    root = glob[0] if glob else url
    if Place(root).holds(output):
        message = (
            f"the output {output} is inside the input {root}: its images would be inputs; choose a place beside it"
        )
        raise ValueError(redacted(message))
    if Place(output).holds(root):
        raise ValueError(redacted(f"the input {url} is inside the output {output}: choose another output"))


class Selection:
    """Which keys are inputs; counts the others."""

    def __init__(self, skipped: Counter[str], pattern: str | None = None) -> None:
        self.skipped = skipped
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
                    self.leave(HIDDEN_FOLDERS)
                self.hidden = hidden
                return False
        for name, segment in zip(names, self.segments, strict=False):
            if segment == "**":
                return True
            if not re.match(glob_translate(segment), name):
                return False
        return len(names) < len(self.segments)

    def takes(self, key: str) -> bool:
        """Whether the file is an input; counts it where it is not, but for its extension."""
        folder, _, name = key.rpartition("/")
        kind = kind_of(name)
        if (folder and not self.enters(folder)) or (self.matches and not self.matches(key)):
            return False
        if _is_hidden(name) or (name.startswith("_") and kind != "image"):
            self.leave(HIDDEN_FILES)
            return False
        if kind is None:
            self.leave(os.path.splitext(name)[1].lower() or "no extension")
        return kind is not None

    def leave(self, kind: str) -> None:
        """Count something that is left alone."""
        known = kind in self.skipped or len(self.skipped) < EXTENSIONS_COUNTED
        self.skipped[kind if known else "others"] += 1


def _is_hidden(name: str) -> bool:
    # In the keys of an object store "." and ".." are names like others.
    return name.startswith(".") and name not in (".", "..")


def _glob(where: str) -> tuple[str, str] | None:
    """Folder and pattern of a glob; None where it is none, or something has that very name."""
    found = re.search(r"[*[]" if where.startswith("http") else r"[*?[]", where)
    if not found or _exists(where):
        return None
    root = where[: found.start()].rpartition("/")[0]
    if root.endswith(":/") or not root:
        raise ValueError(f"{redacted(where)}: a glob needs a bucket or a folder before its first wildcard")
    return root, where[len(root) + 1 :]


def _exists(where: str) -> bool:
    with files.naming(where):
        return storage.exists(where)


def _stat(where: str) -> File | None:
    with files.naming(where):
        return files.stat(where)


def _below(root: str, selection: Selection, url: str, output: str, *, begins: str = "") -> Iterator[Listed]:
    found = False
    for seen in walks.files_below(root, selection, output, begins=begins):
        found = True
        kind = kind_of(seen.key)
        assert kind is not None
        yield Listed(key=seen.key, url=seen.url, kind=kind, size=seen.size, version=seen.version)
    if not found:
        others = ", ".join(f"{count} of {extension}" for extension, count in selection.skipped.most_common(5))
        raise DataError(f"{url}: nothing to clean; expected {EXPECTED}, found {others or 'none'}")


def _single(file: File) -> Listed:
    name = lists.name_of(file.url)
    kind = kind_of(name)
    if kind is None:
        raise DataError(f"{file.url}: expected a folder, or one of the {EXPECTED}, or a list (.txt, .csv, .parquet)")
    query = file.url.partition("?")[2] if storage.is_web(file.url) else ""
    key = lists.told_apart(encodable(name), query)
    return Listed(key=key, url=file.url, kind=kind, size=file.size, version=file.version)


def _of_list(file: File, output: str, skipped: Counter[str]) -> Iterator[Listed]:
    for line in lists.files_in(file, output=output, skipped=skipped):
        # A list says what its files are: a name without an extension is an image's.
        kind = kind_of(line.key) or "image"
        yield Listed(key=line.key, url=line.url, kind=kind, size=line.size, version=line.version)
