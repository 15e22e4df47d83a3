"""Names of outputs: those of their inputs with another extension, made safe for any store.

An input ``cats/a.jpg`` becomes ``cats/a.png``. Kept as they are: letters of all scripts, spaces, ``%``, ``#``, ``?``,
``*``, ``[``. Percent-quoted, so that nothing is written outside the output and every store holds it:

- segments that are empty, ``.`` or ``..``; control characters, line and paragraph separators, backslashes;
- a dot or a space at the end of a segment; ``::`` and ``?versionId=``, which fsspec and s3fs take for their own;
- the last dot of a folder that is named as an output file would be (``x.png/``), so that no name is both.

Segments of more than ``SEGMENT`` bytes, and names of more than ``WHOLE``, are cut and end in a hash: a local file's
name has at most 255 bytes, and the key of an object 1,024.
"""

from __future__ import annotations

import os
import re
import unicodedata

from raypurify.cleaning.base import Kind
from raypurify.storage.published import short_hash

SEGMENT = 160
"""Bytes of a name, before what is put at its end; a draft of a local file adds 34 to it."""
LONGEST_END = 40
"""Bytes of the longest end: a run's number, a hash and an extension."""
WHOLE = 800
"""Bytes of the whole name: they leave 200 for the output's own path."""
LEVELS = 2
"""Names that are tried before those with a hash: see :func:`output_name`."""


def output_name(key: str, kind: Kind, *, extension: str, run: str = "", level: int = 0) -> str:
    """The name of what an input becomes.

    Args:
        key: the input's.
        kind: the input's; Parquet files and tars keep their own extension.
        extension: of images: ``png``.
        run: what tells the runs of one Parquet file apart, at the end of the name: ``-000000500``, or nothing.
        level: 0: the input's name with the extension in place of its own. 1: behind its own (``a.jpg.png``). From 2: a
            hash of key and level before the extension (``a~0123456789abcdef.png``).

    Returns:
        The name, relative; a function of the arguments alone. Different keys may have the same.
    """
    base = key if level == 1 else stem(key)
    mark = "~" + short_hash(f"{level} {key}") if level >= LEVELS else ""
    end = f"{run}{mark}.{extension if kind == 'image' else kind}"
    *folders, name = base.split("/")
    parts = [_cut(_folder(part, extension), SEGMENT) for part in folders]
    begin = "/".join([*parts, _cut(_quoted(name), SEGMENT)])
    return _cut(begin, WHOLE - LONGEST_END) + end


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
