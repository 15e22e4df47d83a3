"""What the parts of a cleaning share: planned inputs, and the units that they are cleaned in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raypurify.storage.published import hexadecimal, unescaped

Kind = Literal["image", "parquet", "tar"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One planned piece of input: an image file, a run of rows of a Parquet file, or a whole WebDataset tar."""

    key: str
    """Name relative to the input's root. The ids of its images: the key, ``key#ROW`` or ``key#MEMBER``; see
    :func:`id_stem`."""
    url: str
    """Absolute path or fsspec URL of the file."""
    kind: Kind
    size: int
    """Bytes of the file; -1 where that is not known, or nothing was there when it was listed."""
    version: str
    """Entity tag or time of change of the file, as it was listed."""
    first: int = 0
    """First row of a Parquet file's run; 0 for the others."""
    rows: int | None = 1
    """Images: 1 for an image file, None for a tar, whose members are counted when it is read. 1 also for a Parquet file
    whose footer could not be read, or tells of no images: its reader says why in one reject."""
    output: str
    """Name of what it becomes, relative to the output's ``images/``."""

    @classmethod
    def planned(cls, row: Mapping[str, Any]) -> Entry:
        """The entry in a row of ``schema.PLAN``, its unit left out."""
        return cls(**{**row, "url": unescaped(row["url"])})

    @property
    def id_stem(self) -> str:
        """What its ids begin with."""
        return id_stem(self.key)

    @property
    def id(self) -> str:
        """Its name in a unit: that of an image file's image; another one for each run of a file."""
        return f"{self.id_stem}#{self.first}.." if self.kind == "parquet" else self.id_stem


_LIKE_A_MEMBER = re.compile(r"(\.(?:parquet|tar|tar\.gz|tgz))(#|\ufffd(?=23))", re.IGNORECASE)


def id_stem(key: str) -> str:
    """What the ids of an input's images begin with: its key.

    In a key like ``a.tar#b.png`` the ``#`` is escaped: that is the id of a member of ``a.tar``.
    """
    return _LIKE_A_MEMBER.sub(lambda found: found[1] + hexadecimal(found[2]), key)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Entries that are cleaned together, written together, and done again together when cut off."""

    name: str
    entries: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """Bytes of its files; a Parquet file's count with its first run."""
        return sum(max(0, entry.size) for entry in self.entries if not entry.first)
