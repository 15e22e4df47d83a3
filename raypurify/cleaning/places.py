"""Whether one path or URL is inside another."""

from __future__ import annotations

import os

from raypurify import storage


class Place:
    """A folder or file, whether or not it exists; symbolic links on the way to a local one are resolved.

    Places are told apart by their store's scheme and their path. The same bucket by two endpoints, or one disk mounted
    twice, are not recognised.
    """

    def __init__(self, url: str) -> None:
        fs, path = storage.filesystem(url)
        self.scheme = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
        self.path = (os.path.realpath(path) if storage.is_local(url) else path).rstrip("/") + "/"

    def holds(self, url: str) -> bool:
        """Whether ``url`` is this place, or inside it."""
        other = Place(url)
        return self.scheme == other.scheme and other.path.startswith(self.path)
