"""Downloads of the named datasets from their official mirrors, checked by SHA-256, into the cache folder."""

from __future__ import annotations

import functools
import hashlib
import http.client
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from raypurify import storage
from raypurify.data import files
from raypurify.data.base import DataError

TIMEOUT = 60.0
"""Seconds without an answer after which a mirror is given up."""

CHECKSUMS: Mapping[str, Mapping[str, str]] = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    "cifar10": {
        "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    },
}
"""SHA-256 of each file of a dataset."""

MIRRORS: Mapping[str, Sequence[str]] = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        "https://storage.googleapis.com/cvdf-datasets/mnist",
    ),
    "cifar10": ("https://www.cs.toronto.edu/~kriz",),
}
"""URLs of folders that have a dataset's files, tried in turn."""


def fetch(name: str, *, folder: Path | None = None) -> Path:
    """The folder that holds a named dataset's files; what is missing there is downloaded first.

    A file takes its place by one rename, once its checksum is found right, so that what is there is whole.

    Args:
        folder: default: the dataset's folder in the cache.

    Raises:
        DataError: no mirror gave the file; says what each did, and how to provide the files.
    """
    folder = folder or files.cache_folder() / name
    for file, checksum in CHECKSUMS[name].items():
        files.make_once(folder / file, functools.partial(_from_mirrors, name, file, checksum))
    return folder


def _from_mirrors(name: str, file: str, checksum: str, path: Path) -> None:
    failures = []
    for mirror in MIRRORS[name]:
        url = storage.join(mirror, file)
        try:
            got = _download(url, path)
            if got == checksum:
                return
            failures.append(f"{url}: wrong checksum: expected SHA-256 {checksum}, got {got}")
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {type(error).__name__}: {error}")
    raise DataError(
        f"{name}: {file} cannot be downloaded: {'; '.join(failures)}. Without the network, put the dataset's files "
        f"({', '.join(CHECKSUMS[name])}) into a folder named {name} and set RAYPURIFY_DATA to the folder that holds it"
    )


def _download(url: str, path: Path) -> str:
    """Write the URL's content to ``path`` and return its SHA-256."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response, open(path, "wb") as out:
        while chunk := response.read(2**20):
            digest.update(chunk)
            out.write(chunk)
    return digest.hexdigest()
