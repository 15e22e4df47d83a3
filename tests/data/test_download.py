from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import numpy as np
import pytest

from raypurify.data import DataError, download, open_source, read_rows


def sums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_download_from_the_first_mirror_that_has_the_right_file(
    http_root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, url = http_root
    for mirror, content in (("damaged", b"wrong"), ("right", b"right")):
        (served / mirror).mkdir()
        (served / mirror / "a.gz").write_bytes(content)
    monkeypatch.setitem(download.MIRRORS, "mnist", [f"{url}/missing", f"{url}/damaged", f"{url}/right"])
    monkeypatch.setitem(download.CHECKSUMS, "mnist", sums(served / "right"))
    folder = download.fetch("mnist", folder=tmp_path / "d")
    assert (folder / "a.gz").read_bytes() == b"right"
    assert not list(folder.glob("*part"))


def test_a_wrong_checksum_shows_both_and_leaves_nothing(
    http_root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, url = http_root
    (served / "a.gz").write_bytes(b"wrong")
    expected, got = (hashlib.sha256(data).hexdigest() for data in (b"right", b"wrong"))
    monkeypatch.setitem(download.MIRRORS, "mnist", [url])
    monkeypatch.setitem(download.CHECKSUMS, "mnist", {"a.gz": expected})
    with pytest.raises(DataError, match=f"{url}/a.gz: wrong checksum: expected SHA-256 {expected}, got {got}"):
        download.fetch("mnist", folder=tmp_path / "d")
    assert not list((tmp_path / "d").glob("*a.gz*"))


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        mirror = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setitem(download.MIRRORS, "cifar10", [mirror])
        with pytest.raises(DataError, match=r"cifar-10-python.tar.gz cannot be downloaded.*set RAYPURIFY_DATA"):
            download.fetch("cifar10", folder=tmp_path / "d")


def test_mnist_by_name_is_downloaded_once_and_again_by_another_node(
    http_root, cache: Path, write_mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, url = http_root
    images, _ = write_mnist(served, gz=True)
    monkeypatch.delenv("RAYPURIFY_DATA", raising=False)
    monkeypatch.setitem(download.MIRRORS, "mnist", [url])
    monkeypatch.setitem(download.CHECKSUMS, "mnist", sums(served))
    source = open_source("mnist", split="train")
    assert source.shards[0].url == str(cache / "mnist" / "train-images-idx3-ubyte.gz")
    np.testing.assert_array_equal(np.asarray(read_rows(source.shards[0], 0, 7).images)[..., 0], images)
    for path in sorted(cache.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    np.testing.assert_array_equal(np.asarray(read_rows(source.shards[0], 0, 7).images)[..., 0], images)
    for path in served.iterdir():
        path.unlink()
    assert open_source("mnist", split="train").fingerprint == source.fingerprint
