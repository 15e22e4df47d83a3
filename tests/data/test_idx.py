from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from raypurify.data import DataError, open_source, read_rows

IMAGES = "train-images-idx3-ubyte"
LABELS = "train-labels-idx1-ubyte"


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
def test_round_trip(tmp_path: Path, write_mnist, gz: bool, split: str) -> None:
    images, labels = write_mnist(tmp_path / "d", split=split, gz=gz)
    source = open_source(str(tmp_path / "d"), split=split)
    assert (source.name, source.split, source.rows, source.image_shape, source.classes) == (
        "d",
        split,
        7,
        (28, 28, 1),
        10,
    )
    rows = read_rows(source.shards[0], 2, 6)
    key = {"train": IMAGES, "test": "t10k-images-idx3-ubyte"}[split]
    assert rows.ids == [f"{key}#{row}" for row in range(2, 6)]
    np.testing.assert_array_equal(rows.images, images[2:6, :, :, None])
    np.testing.assert_array_equal(rows.labels, labels[2:6])
    assert rows.labels.dtype == np.int64
    assert rows.images.dtype == np.uint8
    assert rows.rejects == []


def test_a_file_of_images_stands_for_its_folder(tmp_path: Path, write_mnist) -> None:
    write_mnist(tmp_path, gz=True)
    write_mnist(tmp_path, split="test", rows=3)
    assert open_source(str(tmp_path / f"{IMAGES}.gz"), split="train").rows == 7
    assert open_source(str(tmp_path / f"{IMAGES}.gz"), split="test").rows == 3


def test_colour_images(tmp_path: Path) -> None:
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    (tmp_path / IMAGES).write_bytes(struct.pack(">BBBB4I", 0, 0, 8, 4, *images.shape) + images.tobytes())
    (tmp_path / LABELS).write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 2) + bytes([1, 25]))
    source = open_source(str(tmp_path), split="train")
    assert (source.image_shape, source.classes) == ((4, 5, 3), 26)
    np.testing.assert_array_equal(read_rows(source.shards[0], 0, 2).images, images)


def test_the_inflated_file_is_made_once_and_anew_when_the_file_changes(tmp_path: Path, write_mnist, cache) -> None:
    write_mnist(tmp_path / "d", gz=True)
    shard = open_source(str(tmp_path / "d"), split="train").shards[0]
    first = read_rows(shard, 0, 7)
    (tmp_path / "d" / f"{IMAGES}.gz").unlink()
    np.testing.assert_array_equal(read_rows(shard, 0, 7).images, first.images)
    assert not list(cache.rglob("*.part"))
    images, _ = write_mnist(tmp_path / "d", rows=8, gz=True)
    rows = read_rows(open_source(str(tmp_path / "d"), split="train").shards[0], 0, 8)
    np.testing.assert_array_equal(rows.images[..., 0], images)


def test_several_gzip_members_are_read_whole(tmp_path: Path, write_mnist) -> None:
    images, _ = write_mnist(tmp_path)
    path = tmp_path / IMAGES
    data = path.read_bytes()
    path.unlink()
    path.with_name(f"{IMAGES}.gz").write_bytes(gzip.compress(data[:1000]) + gzip.compress(data[1000:]))
    rows = read_rows(open_source(str(tmp_path), split="train").shards[0], 0, 7)
    np.testing.assert_array_equal(rows.images[..., 0], images)


def test_limit_and_fingerprint(tmp_path: Path, write_mnist) -> None:
    write_mnist(tmp_path / "here" / "d")
    write_mnist(tmp_path / "there" / "d")
    here = open_source(str(tmp_path / "here" / "d"), split="train")
    limited = open_source(str(tmp_path / "here" / "d"), split="train", limit=3)
    assert limited.rows == 3
    assert limited.fingerprint != here.fingerprint
    assert open_source(str(tmp_path / "there" / "d"), split="train").fingerprint == here.fingerprint
    path = tmp_path / "there" / "d" / IMAGES
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(bytes(data))
    assert open_source(str(tmp_path / "there" / "d"), split="train").fingerprint != here.fingerprint
    with pytest.raises(IndexError, match="rows 2 to 4 are not in the shard"):
        read_rows(limited.shards[0], 2, 4)


def test_mnist_is_found_in_raypurify_data(tmp_path: Path, write_mnist, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "mnist", gz=True)
    monkeypatch.setenv("RAYPURIFY_DATA", str(tmp_path))
    source = open_source("mnist", split="train")
    assert (source.name, source.rows) == ("mnist", 7)


def _break(folder: Path, name: str, change) -> None:
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (IMAGES, lambda data: data[:-1], rf"{IMAGES}: truncated: .* 5504 bytes, it ends at offset 5503"),
        (IMAGES, lambda data: data[:10], rf"{IMAGES}: truncated: the header ends at offset 10 of 16"),
        (IMAGES, lambda data: data + b"\0", rf"{IMAGES}: too long: .* 5504 bytes, it ends at offset 5505"),
        (IMAGES, lambda data: b"\1" + data[1:], rf"{IMAGES}: wrong magic number at offset 0: .* got 01000803"),
        (IMAGES, lambda data: b"", rf"{IMAGES}: wrong magic number at offset 0: .* got an empty file"),
        (IMAGES, lambda data: data[:2] + b"\x0d" + data[3:], rf"{IMAGES}: wrong type at offset 2: .* got float32"),
        (LABELS, lambda data: data[:7] + b"\6" + data[8:-1], rf"{LABELS}: holds 6 labels, but .*{IMAGES} holds 7"),
    ],
)
@pytest.mark.parametrize("gz", [False, True])
def test_damage_is_named(tmp_path: Path, write_mnist, name: str, change, message: str, gz: bool) -> None:
    write_mnist(tmp_path)
    _break(tmp_path, name, change)
    if gz:
        path = tmp_path / name
        path.with_name(f"{name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        message = message.replace(f"{name}:", rf"{name}\.gz:", 1)
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path), split="train")


@pytest.mark.parametrize("kept", [30, 1000, -1])
def test_truncated_gzip(tmp_path: Path, write_mnist, kept: int) -> None:
    write_mnist(tmp_path, gz=True)
    _break(tmp_path, f"{IMAGES}.gz", lambda data: data[:kept])
    with pytest.raises(DataError, match=rf"{IMAGES}\.gz: truncated: the gzip stream ends early, near offset \d+"):
        open_source(str(tmp_path), split="train")


def test_damaged_gzip_is_found_when_read(tmp_path: Path, write_mnist, cache: Path) -> None:
    write_mnist(tmp_path / "d", gz=True)
    _break(tmp_path / "d", f"{IMAGES}.gz", lambda data: data[:3000] + bytes([data[3000] ^ 255]) + data[3001:])
    shard = open_source(str(tmp_path / "d"), split="train").shards[0]
    with pytest.raises(DataError, match=rf"{IMAGES}\.gz: damaged gzip stream"):
        read_rows(shard, 0, 1)
    assert not list(cache.rglob("*.part"))


def test_label_out_of_range(tmp_path: Path, write_mnist, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "mnist")
    monkeypatch.setenv("RAYPURIFY_DATA", str(tmp_path))
    _break(tmp_path / "mnist", LABELS, lambda data: data[:10] + b"\x0b" + data[11:])
    with pytest.raises(DataError, match=rf"{LABELS}, row 2: label 11 is out of range: expected 0 to 9"):
        open_source("mnist", split="train")


def test_a_file_that_is_cut_off_later_is_named_when_read(tmp_path: Path, write_mnist) -> None:
    write_mnist(tmp_path)
    shard = open_source(str(tmp_path), split="train").shards[0]
    _break(tmp_path, IMAGES, lambda data: data[:2000])
    with pytest.raises(DataError, match=rf"{IMAGES}: truncated: expected 784 bytes at offset 1584, got 416"):
        read_rows(shard, 2, 3)


def test_labels_missing(tmp_path: Path, write_mnist) -> None:
    write_mnist(tmp_path)
    (tmp_path / LABELS).unlink()
    with pytest.raises(DataError, match=f"{IMAGES}: beside it, {LABELS} .* is missing"):
        open_source(str(tmp_path), split="train")


def test_wrong_arguments(tmp_path: Path, write_mnist) -> None:
    write_mnist(tmp_path)
    with pytest.raises(ValueError, match="split: expected 'train' or 'test', got 'valid'"):
        open_source(str(tmp_path), split="valid")
    with pytest.raises(ValueError, match="limit: expected at least 1 row, got 0"):
        open_source(str(tmp_path), split="train", limit=0)
    with pytest.raises(DataError, match="no data of the test split"):
        open_source(str(tmp_path), split="test")
    with pytest.raises(DataError, match=r"no dataset 'digit': known are digits, mnist, cifar10; did you mean digits\?"):
        open_source("digit", split="test")
    with pytest.raises(DataError, match="nowhere: there is no such file or folder"):
        open_source(str(tmp_path / "nowhere"), split="test")


def test_names_with_a_dot_give_the_same_ids(tmp_path: Path, write_mnist) -> None:
    write_mnist(tmp_path)
    for name in (IMAGES, LABELS):
        (tmp_path / name).rename(tmp_path / name.replace("-idx", ".idx"))
    rows = read_rows(open_source(str(tmp_path), split="train").shards[0], 0, 1)
    assert rows.ids == [f"{IMAGES}#0"]
