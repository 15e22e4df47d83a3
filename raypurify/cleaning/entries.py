"""What a plan is made of: one input, or a part of one, on its way from the listing to the units."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from raypurify import images
from raypurify.storage.published import escaped, hexadecimal, unescaped

Kind = Literal["image", "parquet", "tar"]

KINDS: dict[str, Kind] = {
    **dict.fromkeys((f".{extension}" for extension in sorted(images.EXTENSIONS)), "image"),
    ".parquet": "parquet",
    ".tar": "tar",
    ".tar.gz": "tar",
    ".tgz": "tar",
}
"""What a file is, by the end of its name in lower case."""

_LIKE_A_MEMBER = re.compile(r"(\.(?:parquet|tar|tar\.gz|tgz))(#|\ufffd(?=23))", re.IGNORECASE)


class Entry(NamedTuple):
    """One piece of input: an image file, a range of rows of a Parquet file, or a whole WebDataset tar.

    The listing tells of whole files; the plan adds the ranges and the outputs.
    """

    key: str
    """Relative to the input's root. Of a list's files: relative to the list, or else host or bucket and path. The ids
    of its images: the key, ``key#ROW`` or ``key#MEMBER``; see :func:`id_stem`."""
    url: str
    """Absolute path or URL, to be opened as it is: ``*``, ``[``, ``?``, ``#`` and ``%`` mean themselves."""
    kind: Kind
    size: int
    """Bytes of the file; -1 where that is not known, or nothing was there when it was listed."""
    version: str
    """Entity tag or time of change of the file, as it was listed; empty where that is not known."""
    first: int = 0
    """First row of a Parquet file's range; 0 for the others."""
    rows: int | None = 1
    """Images, once it is planned: 1 for an image file, None for a tar, whose members are counted when it is read. 1
    also for a Parquet file whose footer could not be read, or tells of no images: its reader says so in one reject."""
    output: str = ""
    """Name of what it becomes, relative to the output's ``images/``; empty until it has one."""

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Entry:
        """The entry in a row of ``schema.PLAN``."""
        return cls(**{name: row[name] for name in cls._fields})._replace(url=unescaped(row["url"]))

    def row(self, unit: str) -> tuple[Any, ...]:
        """The entry's values in the order of ``schema.PLAN``."""
        return (unit, *self._replace(url=escaped(self.url)))

    @property
    def id(self) -> str:
        """The entry's name in a unit: the id of an image file's image, or a name for each range of a file's rows."""
        return f"{id_stem(self.key)}#{self.first}.." if self.kind == "parquet" else id_stem(self.key)


def kind_of(name: str) -> Kind | None:
    """What a file of this name is taken for; None where it is no input."""
    name = name.lower()
    return next((kind for extension, kind in KINDS.items() if name.endswith(extension)), None)


def id_stem(key: str) -> str:
    """What the ids of an input's images begin with: its key.

    In a key like ``a.tar#b.png`` the ``#`` is escaped: that is the id of a member of ``a.tar``.
    """
    return _LIKE_A_MEMBER.sub(lambda found: found[1] + hexadecimal(found[2]), key)
