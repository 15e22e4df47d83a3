"""Sets of names in 8 bytes a name: millions of them fit in memory."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable

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

    def update(self, digests: NDArray[np.uint64]) -> None:
        """Add names by their digests."""
        self.values.frombytes(digests.tobytes())

    def seal(self) -> Digests:
        """Sort the set, in place: from now on it can be asked, and not added to."""
        if self.values:
            np.frombuffer(self.values, np.uint64).sort()
        return self

    def __contains__(self, name: str) -> bool:
        digest = _digest(name)
        index = bisect_left(self.values, digest)
        return index < len(self.values) and self.values[index] == digest

    def holds(self, digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of some names are in this sealed set, by their digests."""
        if not self.values:
            return np.zeros(len(digests), np.bool_)
        values = np.frombuffer(self.values, np.uint64)
        found: NDArray[np.bool_] = values[np.minimum(np.searchsorted(values, digests), len(values) - 1)] == digests
        return found

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
                found.update(chunk[other.holds(chunk)])
        return found.seal()


def digests_of(names: Iterable[str]) -> NDArray[np.uint64]:
    """The digest of each name."""
    return np.array([_digest(name) for name in names], np.uint64)


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
