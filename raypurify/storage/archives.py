"""Tars that are read from their start to their end, past zeros and damage.

The standard library takes the first block of zeros, and any damage, for the end of the archive. Behind them may be
more: tars that were joined (``cat a.tar b.tar``), or what came after a hole in a download.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from typing import IO, Any, cast

COMPRESSED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b\x08": gzip.open,
    **{b"BZh%d1AY&SY" % level: bz2.open for level in range(1, 10)},
    b"\xfd7zXZ": lzma.open,
    b"\x5d\0\0\x80": lzma.open,
}
"""How compressed files begin; each may consist of several that were joined. A tar begins with a name, as BZh.png."""
MARK = 10
"""How many bytes the longest of these beginnings has."""

LARGEST = 1 << 30
"""The largest number of bytes of a member, or of a header, that are read at once."""
SKIPPED = 1 << 16
"""How many bytes are skipped at once."""


class Forward:
    """What a tar is read from: forwards only, and no farther than to its end, wherever its headers point."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        """``read``: so many of the next bytes at most, and none at the end."""
        self._read, self._position = read, 0

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return False

    def seek(self, position: int) -> None:
        if position < self._position:
            raise tarfile.StreamError("a header points backwards")
        while self._position < position:
            if not self.read(min(position - self._position, SKIPPED)):
                raise tarfile.ReadError("unexpected end of data")

    def read(self, size: int) -> bytes:
        if size > LARGEST:
            raise tarfile.ReadError(f"a header has {size} bytes; at most {LARGEST} are read")
        pieces = []
        while size > 0 and (piece := self._read(size)):
            pieces.append(piece)
            size -= len(piece)
        data = b"".join(pieces)
        self._position += len(data)
        return data


class Header(tarfile.TarInfo):
    """A member's header. Blocks that are no part of any member are noted in the tar."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Header:
        if buf and buf.count(0) == len(buf):
            # Zeros are zeros, also where the last block of them is cut off.
            raise tarfile.EOFHeaderError("zeros")  # type: ignore[attr-defined]
        return super().frombuf(buf, encoding, errors)

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Header:
        assert isinstance(tar, Tar)
        begin = tar.offset
        try:
            header = super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tar.is_ended = True
            raise
        except tarfile.HeaderError as error:
            if isinstance(error, _ENDS) and not tar.is_ended:
                raise tarfile.ReadError("it is cut off") from None
            if isinstance(error, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
                raise
            tar.go_on_after(begin)
            raise tarfile.InvalidHeaderError(str(error)) from error  # type: ignore[attr-defined]
        tar.is_ended = False
        return header


_ENDS = (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]


class Tar(tarfile.TarFile):
    """A tar that is read once. :func:`opened` makes it."""

    tarinfo = Header
    is_ended = False
    """Whether the last block was of no member, so that none is cut off where the file ends here."""
    damaged_at: int | None = None
    """Where the first bytes are, of the inflated tar, that are no zeros and no part of any member."""

    def go_on_after(self, begin: int) -> None:
        """Let the next header be looked for behind all that was read from ``begin`` on."""
        self.damaged_at = begin if self.damaged_at is None else self.damaged_at
        self.is_ended = True
        # tarfile adds a block to this. What was read is more where the damaged header was to follow another.
        self.offset = self.fileobj.tell() - tarfile.BLOCKSIZE

    def next(self) -> tarfile.TarInfo | None:
        """The next member; None behind the last one. None is kept: there may be millions."""
        member = super().next()
        self.members.clear()  # type: ignore[attr-defined]
        return member


def opened(file: IO[bytes]) -> Tar:
    """The tar in a file, inflated where it is compressed.

    Raises:
        tarfile.ReadError: there is none.
    """
    buffered = io.BufferedReader(cast(io.RawIOBase, file))
    head = buffered.peek(MARK)
    inflate = next((kind for mark, kind in COMPRESSED.items() if head.startswith(mark)), lambda plain: plain)
    # read() of a damaged file would lose to the error what comes before it.
    pieces = Forward(inflate(buffered).read1)
    return Tar(fileobj=cast(IO[bytes], pieces), ignore_zeros=True)
