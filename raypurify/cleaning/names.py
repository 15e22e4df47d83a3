"""Names of outputs, and of tars' members: those of their inputs with another extension, made safe for any store.

An input ``cats/a.jpg`` becomes ``cats/a.png``. Kept as they are: letters of all scripts, spaces, ``%``, ``#``, ``?``,
``*``, ``[``. Percent-quoted, so that nothing is written outside the output and every store holds it:

- segments that are empty, ``.`` or ``..``; control characters, line and paragraph separators, backslashes;
- a dot or a space at the end of a segment; ``::`` and ``?versionId=``, which fsspec and s3fs take for their own;
- the last dot of a folder that is named as an output file would be (``x.png/``), so that no name is both.

Two inputs that would become one output (``a.jpg``, ``a.png``) keep their full names (``a.jpg.png``, ``a.png.png``);
where these are taken too, a hash of the key goes into the name.

Segments of more than ``SEGMENT`` bytes, and names of more than ``LONGEST_NAME``, are cut and end in a hash: a local
file's name has at most 255 bytes, and the key of an object 1,024.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from itertools import count

from raypurify.cleaning.entries import Kind
from raypurify.storage.bounded import Digests
from raypurify.storage.published import cut, short_hash

SEGMENT = 160
"""Bytes of a name, before what is put at its end; a draft of a local file adds 34 to it."""
LONGEST_END = 40
"""Bytes of the longest end: the number of a first row, a hash and an extension."""
LONGEST_NAME = 800
"""Bytes of a name with its folders: they leave 200 for the output's own path."""
HASHED = 2
"""The first level of names with a hash: see :func:`output_name`."""
_UNSAFE = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Backslashes, control characters, separators of lines and paragraphs, and halves of surrogate pairs."""

Output = tuple[str, Kind, str]
"""Key, kind and suffix of an output, as :func:`output_name` takes them."""


def output_name(key: str, kind: Kind, *, extension: str, suffix: str = "", level: int = 0) -> str:
    """The name of what an input becomes.

    Args:
        key: the input's.
        kind: the input's; Parquet files and tars keep their own extension.
        extension: of images: ``png``.
        suffix: what tells the outputs of one Parquet file apart, at the end of the name: ``-000000500``, or nothing.
        level: 0: the input's name with the extension in place of its own. 1: behind its own (``a.jpg.png``). From 2: a
            hash of key and level before the extension (``a~0123456789abcdef.png``).

    Returns:
        The name, relative; a function of the arguments alone. Different keys may have the same.
    """
    base = key if level == 1 else stem(key)
    mark = "~" + short_hash(f"{level} {key}") if level >= HASHED else ""
    end = f"{suffix}{mark}.{extension if kind == 'image' else kind}"
    *folders, name = base.split("/")
    parts = [cut(_folder(part, extension), SEGMENT) for part in folders]
    begin = "/".join([*parts, cut(_quoted(name), SEGMENT)])
    return cut(begin, LONGEST_NAME - LONGEST_END) + end


class UniqueNames:
    """Gives each output a name of its own, in 8 bytes of memory an output, or 32 where all names collide.

    A name that several outputs would have, or that is taken, is given to none of them: each gets its next one. So all
    outputs are told to :meth:`add`, then to :meth:`settle`, before :meth:`name` says what they are called.
    """

    def __init__(self, extension: str, *, folds: bool) -> None:
        """``folds``: names that differ in upper and lower case only are one."""
        self.extension, self.fold = extension, folded if folds else str
        self.short, self.full = Digests(), Digests()

    def add(self, output: Output) -> None:
        """Take note of an output."""
        self.short.add(self.fold(self._at(output, 0)))

    def settle(self, outputs: Iterable[Output], taken: Digests) -> None:
        """Find the names that collide, also with those ``taken`` (sealed); ``outputs`` are all that were added."""
        self.taken = taken
        self.collisions = self.short.seal().collisions(taken)
        for output in outputs if self.collisions else ():
            if self.fold(self._at(output, 0)) in self.collisions:
                self.full.add(self.fold(self._at(output, 1)))
        self.full_collisions = self.full.seal().collisions(self.short, taken)

    def name(self, output: Output) -> str:
        """The name of an output."""
        for level, collisions in enumerate((self.collisions, self.full_collisions)):
            name = self._at(output, level)
            if self.fold(name) not in collisions:
                return name
        # A hostile key may look like the name with another's hash.
        hashed = (self._at(output, level) for level in count(HASHED))
        used = self.short, self.full, self.taken
        return next(name for name in hashed if not any(self.fold(name) in names for names in used))

    def _at(self, output: Output, level: int) -> str:
        key, kind, suffix = output
        return output_name(key, kind, extension=self.extension, suffix=suffix, level=level)


def inside(name: str) -> str:
    """The name of a tar's member with what may lead out of a folder quoted.

    That is ``..``, a root or a drive at its begin, a backslash, and control characters, some of which end a name.
    """
    name = re.sub("^(/|[a-zA-Z]:)", lambda begin: begin[0][:-1] + _percent(begin[0][-1]), name)
    return "/".join("%2E%2E" if part == ".." else part for part in _without_unsafe(name).split("/"))


def numbered(name: str, seen: dict[str, int]) -> str:
    """A member's name, with its number behind it where one of that name has been; counts it in ``seen``."""
    number = seen.get(name, 0) + 1
    while number > 1 and f"{name}~{number}" in seen:
        number += 1
    seen[name] = number
    if number == 1:
        return name
    seen[f"{name}~{number}"] = 1
    return f"{name}~{number}"


def printable(name: str) -> str:
    """A name in another encoding than UTF-8 comes with bytes that no text can hold."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def folded(name: str) -> str:
    """The name as a store sees it that does not tell upper from lower case, or compositions of one character."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def stem(key: str) -> str:
    """A key without its extension."""
    shorter = os.path.splitext(key)[0]
    return os.path.splitext(shorter)[0] if key.lower().endswith(".tar.gz") else shorter


def _folder(name: str, extension: str) -> str:
    quoted = _quoted(name)
    quoted = re.sub(r"[. ]$", lambda last: _percent(last[0]), quoted)
    begin, end = os.path.splitext(quoted)
    return f"{begin}%2E{end[1:]}" if end.lower() in (f".{extension}", ".parquet", ".tar") else quoted


def _quoted(name: str) -> str:
    if name in ("", ".", ".."):
        return "%2E" * len(name) or "%2F"
    return _without_unsafe(name.replace("::", "%3A%3A").replace("?versionId=", "%3FversionId="))


def _without_unsafe(name: str) -> str:
    return _UNSAFE.sub(lambda char: _percent(char[0]), name)


def _percent(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
