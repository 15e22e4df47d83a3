"""Sets of names in 8 bytes a name: millions of them fit in memory."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 16


class Digests:
    """64-bit BLAKE2b digests of names, sorted by :meth:`seal`.

    Two names may have one digest, by chance once in 10^5 sets of ten million names: then a name that is not in the set
    is said to be in it.
    """

    def __init__(self) -> None:
        self.values = array("Q")

    def add(self, name: str) -> None:
        """Add a name to a set that is not sealed."""
        self.values.append(_digest(name))

    def seal(self) -> Digests:
        """Sort the set, in place: from now on it can be asked, and not added to."""
        if self.values:
            np.frombuffer(self.values, np.uint64).sort()
        return self

    def __contains__(self, name: str) -> bool:
        digest = _digest(name)
        index = bisect_left(self.values, digest)
        return index < len(self.values) and self.values[index] == digest

    def crowded(self, *others: Digests) -> Digests:
        """The names of this sealed set that it holds twice, or that are in another."""
        found = Digests()
        if not self.values:
            return found
        own = np.frombuffer(self.values, np.uint64)
        found.values.frombytes(own[1:][own[1:] == own[:-1]].tobytes())
        for other in others:
            for start in range(0, len(own), CHUNK):
                chunk = own[start : start + CHUNK]
                found.values.frombytes(chunk[_are_in(chunk, other)].tobytes())
        return found.seal()


def _are_in(chunk: NDArray[np.uint64], other: Digests) -> NDArray[np.bool_]:
    if not other.values:
        return np.zeros(len(chunk), np.bool_)
    values = np.frombuffer(other.values, np.uint64)
    return values[np.minimum(np.searchsorted(values, chunk), len(values) - 1)] == chunk


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
