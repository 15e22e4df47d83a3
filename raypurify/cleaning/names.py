"""Names of outputs: those of their inputs with another extension, made safe for any store.

An input ``cats/a.jpg`` becomes ``cats/a.png``. Kept as they are: letters of all scripts, spaces, ``%``, ``#``, ``?``,
``*``, ``[``. Percent-quoted, so that nothing is written outside the output and every store holds it:

- segments that are empty, ``.`` or ``..``; control characters, line and paragraph separators, backslashes;
- a dot or a space at the end of a segment; ``::`` and ``?versionId=``, which fsspec and s3fs take for their own;
- the last dot of a folder that is named as an output file would be (``x.png/``), so that no name is both.

Two inputs that would become one output (``a.jpg``, ``a.png``) keep their full names (``a.jpg.png``, ``a.png.png``);
where these are taken too, a hash of the key goes into the name.

Segments of more than ``SEGMENT`` bytes, and names of more than ``WHOLE``, are cut and end in a hash: a local file's
name has at most 255 bytes, and the key of an object 1,024.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from raypurify.cleaning.bounded import Digests
from raypurify.cleaning.folders import Kind
from raypurify.storage.published import short_hash

SEGMENT = 160
"""Bytes of a name, before what is put at its end; a draft of a local file adds 34 to it."""
LONGEST_END = 40
"""Bytes of the longest end: the number of a first row, a hash and an extension."""
LONGEST_NAME = 800
"""Bytes of a name with its folders: they leave 200 for the output's own path."""
HASHED = 2
"""The first level of names with a hash: see :func:`output_name`."""


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
    parts = [_cut(_folder(part, extension), SEGMENT) for part in folders]
    begin = "/".join([*parts, _cut(_quoted(name), SEGMENT)])
    return _cut(begin, LONGEST_NAME - LONGEST_END) + end


def unique_names(
    outputs: Callable[[], Iterable[tuple[str, Kind, str]]], *, extension: str, taken: Digests, folds: bool
) -> Iterator[str]:
    """Give each output a name of its own, in 8 bytes of memory an output, or 32 where all names collide.

    A name that several outputs would have, or that is taken, is given to none of them: each gets its next one.

    Args:
        outputs: yields key, kind and suffix of each output, as of :func:`output_name`; called several times.
        extension: of cleaned images, without a dot.
        taken: names that other outputs have, sealed.
        folds: names that differ in upper and lower case only are one.

    Yields:
        The name of each, in their order.
    """

    def name(output: tuple[str, Kind, str], level: int) -> str:
        key, kind, suffix = output
        return output_name(key, kind, extension=extension, suffix=suffix, level=level)

    def as_told_apart(name: str) -> str:
        return folded(name) if folds else name

    short, full = Digests(), Digests()
    for output in outputs():
        short.add(as_told_apart(name(output, 0)))
    collisions = short.seal().collisions(taken)
    for output in outputs() if collisions else ():
        if as_told_apart(name(output, 0)) in collisions:
            full.add(as_told_apart(name(output, 1)))
    collisions_of_full = full.seal().collisions(short, taken)
    for output in outputs():
        level = 0
        if as_told_apart(name(output, 0)) in collisions:
            level = HASHED if as_told_apart(name(output, 1)) in collisions_of_full else 1
        # A hostile key may look like the name with another's hash.
        while level >= HASHED and any(as_told_apart(name(output, level)) in names for names in (short, full, taken)):
            level += 1
        yield name(output, level)


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
    name = name.replace("::", "%3A%3A").replace("?versionId=", "%3FversionId=")
    return "".join(_percent(char) if _is_unsafe(char) else char for char in name)


def _is_unsafe(char: str) -> bool:
    return char == "\\" or (not char.isalnum() and unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"))


def _percent(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))


def _cut(text: str, limit: int) -> str:
    """The text, or its start and a hash of it."""
    data = text.encode()
    if len(data) <= limit:
        return text
    return data[: limit - 17].decode(errors="ignore").rstrip("/") + "~" + short_hash(text)
