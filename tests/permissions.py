"""Files that may not be read, also by root."""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

CAPABILITIES_3 = 0x20080522
DAC_OVERRIDE_AND_READ_SEARCH = 0b110
"""Linux's capabilities by which permissions do not bind root."""


@contextlib.contextmanager
def unreadable(*paths: Path) -> Iterator[None]:
    """While the block runs this thread, and those that it starts, may not read these files."""
    for path in paths:
        path.chmod(0)
    header, before = (ctypes.c_uint32 * 2)(CAPABILITIES_3), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    libc.capget(header, before)
    less = (ctypes.c_uint32 * 6)(before[0] & ~DAC_OVERRIDE_AND_READ_SEARCH, *before[1:])
    libc.capset(header, less)
    try:
        yield
    finally:
        libc.capset(header, before)
        for path in paths:
            path.chmod(0o600)
