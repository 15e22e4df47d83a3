"""Inputs that tests of several files list."""

from __future__ import annotations

import pytest
from servers import KEYS_OF_A_PAGE

from raypurify import storage


@pytest.fixture(scope="session")
def many_objects(s3: str) -> tuple[str, list[str]]:
    """A folder on S3 whose listing has three pages, and the keys in it; one with nearly its name is beside it."""
    keys = [f"{number % 5}/{number}.png" for number in range(3 * KEYS_OF_A_PAGE)]
    fs, path = storage.filesystem(f"{s3}/many")
    fs.pipe({f"{path}/{key}": b"12345" for key in keys})
    fs.pipe_file(f"{path}-beside/x.png", b"12345")
    return f"{s3}/many", keys
