from __future__ import annotations

import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from raypurify.data import DataError, open_source, read_rows
from raypurify.data.formats import cifar


def sample(rows: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """Data (N, 3072) in the files' own order, and labels."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (rows, 3072), dtype=np.uint8), [int(label) for label in rng.integers(0, 10, rows)]


def binary_batch(data: np.ndarray, labels: list[int]) -> bytes:
    return b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, data, strict=True))


def _string(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def python_batch(data: np.ndarray, labels: list[int]) -> bytes:
    """The pickle that Python 2 and numpy 1 made of a batch, as in the official files."""
    dtype = (
        b"cnumpy\ndtype\n" + _string(b"u1") + b"K\0K\1\x87R(K\3" + _string(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2
    ) + b"K\0tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + _string(b"b") + b"\x87R"
        b"(K\1" + struct.pack("<cicic", b"J", data.shape[0], b"J", data.shape[1], b"\x86") + dtype + b"\x89"
        b"T" + struct.pack("<i", data.size) + data.tobytes() + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    names = b"](" + b"".join(_string(b"leptodactylus_s_%06d.png" % row) for row in range(len(labels))) + b"e"
    return (
        b"\x80\2}(" + _string(b"batch_label") + _string(b"training batch 1 of 5") + _string(b"labels") + numbers
    ) + (_string(b"data") + array + _string(b"filenames") + names + b"u.")


def python3_batch(data: np.ndarray, labels: list[int]) -> bytes:
    return pickle.dumps({b"data": data, b"labels": labels}, protocol=2)


WRITERS = {"binary": (binary_batch, ".bin"), "python": (python_batch, ""), "python3": (python3_batch, "")}


def contents(kind: str) -> dict[str, bytes]:
    """Small files of a distribution: two training batches of 4 and 5 rows, and a test batch of 3."""
    writer, suffix = WRITERS[kind]
    parts = {"data_batch_1": (4, 1), "data_batch_2": (5, 2), "test_batch": (3, 3)}
    return {name + suffix: writer(*sample(*part)) for name, part in parts.items()}


def write(place: Path, kind: str, layout: str) -> Path:
    files = contents(kind) | {"readme.html": b"<p>", "batches.meta": b"not read"}
    inner = "cifar-10-batches-bin" if kind == "binary" else "cifar-10-batches-py"
    if layout == "archive":
        path = place / f"cifar-10-{'binary' if kind == 'binary' else 'python'}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(f"{inner}/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return path
    folder = place / inner if layout == "parent" else place
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return place


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("layout", ["folder", "parent", "archive"])
def test_round_trip(tmp_path: Path, kind: str, layout: str) -> None:
    root = write(tmp_path, kind, layout)
    suffix = WRITERS[kind][1]
    train = open_source(str(root), split="train")
    assert [(shard.key, shard.rows) for shard in train.shards] == [
        (f"data_batch_1{suffix}", 4),
        (f"data_batch_2{suffix}", 5),
    ]
    assert (train.image_shape, train.classes) == ((32, 32, 3), cifar.CLASSES)
    rows = read_rows(train.shards[1], 1, 4)
    data, labels = sample(5, 2)
    assert rows.ids == [f"data_batch_2{suffix}#{row}" for row in (1, 2, 3)]
    np.testing.assert_array_equal(rows.images, data[1:4].reshape(3, 3, 32, 32).transpose(0, 2, 3, 1))
    assert rows.labels.tolist() == labels[1:4]
    assert open_source(str(root), split="test").rows == 3


def test_cifar10_by_name_takes_the_archive_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cifar10").mkdir()
    write(tmp_path / "cifar10", "python", "archive")
    monkeypatch.setenv("RAYPURIFY_DATA", str(tmp_path))
    source = open_source("cifar10", split="train", limit=6)
    assert (source.name, [shard.rows for shard in source.shards]) == ("cifar10", [4, 2])


def test_records_are_made_once(tmp_path: Path) -> None:
    path = write(tmp_path, "python", "archive")
    shard = open_source(str(path), split="train").shards[0]
    path.unlink()
    assert read_rows(shard, 0, 4).labels.tolist() == sample(4, 1)[1]


class _Hostile:
    def __init__(self, call, *args: object) -> None:
        self.call = (call, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("call", "args", "named"),
    [
        (exec, ("open('hacked', 'w')",), r"__builtin__\.exec"),
        (np.load, ("x.npy",), r"numpy\.load"),
        (getattr, ("text", "join"), r"__builtin__\.getattr"),
        (np.dtype, ("O",), "array of object"),
        (str.encode, ("x", "rot13"), "getattr"),
    ],
)
@pytest.mark.parametrize("layout", ["folder", "archive"])
def test_a_hostile_pickle_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call, args, named: str, layout: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(
        WRITERS, "python", (lambda data, labels: pickle.dumps({"data": _Hostile(call, *args)}, protocol=2), "")
    )
    root = write(tmp_path, "python", layout)
    with pytest.raises(DataError, match=f"data_batch_1: the pickle asks for .*{named}.* refused"):
        open_source(str(root), split="train")
    assert not (tmp_path / "hacked").exists()


def test_a_pickle_cannot_change_numpys_own_types(tmp_path: Path) -> None:
    state = pickle.dumps((3, ">", None, None, None, 8, 1, 0), protocol=2)[2:-1]
    data = b"\x80\2cnumpy\ndtype\n" + _string(b"u1") + b"K\0K\0\x87R" + state + b"b."
    (tmp_path / "data_batch_1").write_bytes(data)
    with pytest.raises(DataError, match="data_batch_1: "):
        open_source(str(tmp_path), split="train")
    assert np.dtype("u1").itemsize == 1
    assert np.dtype("u1") == np.uint8


def test_an_object_array_is_refused(tmp_path: Path) -> None:
    data = np.array([["a", None]], dtype=object)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({"data": data, "labels": [1]}, protocol=2))
    with pytest.raises(DataError, match="array of object"):
        open_source(str(tmp_path), split="train")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"data": np.zeros((2, 3072), np.float32), "labels": [1, 2]}, r"expected an array .* got \(2, 3072\) float32"),
        ({"data": np.zeros((2, 100), np.uint8), "labels": [1, 2]}, r"expected an array .* got \(2, 100\) uint8"),
        ({"data": [1, 2], "labels": [1, 2]}, "expected an array .* got list"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "1 labels, but 2 images"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 10]}, "row 1: label 10 is out of range"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": ["a", "b"]}, "'labels': expected integers"),
        ({"data": np.zeros((2, 3072), np.uint8)}, r"got the keys \['data'\]"),
        ([1, 2], "expected a pickled dict .* got a list"),
    ],
)
def test_a_pickle_of_something_else_is_named(tmp_path: Path, batch: object, message: str) -> None:
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DataError, match=f"data_batch_1.*{message}"):
        open_source(str(tmp_path), split="train")


def test_truncated_files_are_named(tmp_path: Path) -> None:
    for kind in ("binary", "python"):
        folder = tmp_path / kind
        folder.mkdir()
        write(folder, kind, "folder")
        path = folder / f"data_batch_2{WRITERS[kind][1]}"
        path.write_bytes(path.read_bytes()[:7000])
        with pytest.raises(DataError, match=f"{path.name}: truncated.* offset [1-9]"):
            open_source(str(folder), split="train")


@pytest.mark.parametrize("kind", ["binary", "python"])
@pytest.mark.parametrize("kept", [100, 20000, -4])
def test_a_truncated_archive_is_named(tmp_path: Path, kind: str, kept: int, cache: Path) -> None:
    path = write(tmp_path, kind, "archive")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=rf"{path.name}.*: truncated.* offset"):
        open_source(str(path), split="train")
    assert not list(cache.rglob("*.part"))


def test_a_binary_label_out_of_range_is_named_when_read(tmp_path: Path) -> None:
    data, labels = sample(3, 1)
    labels[2] = 77
    (tmp_path / "data_batch_1.bin").write_bytes(binary_batch(data, labels))
    shard = open_source(str(tmp_path), split="train").shards[0]
    assert read_rows(shard, 0, 2).labels.tolist() == labels[:2]
    with pytest.raises(DataError, match=r"data_batch_1.bin, row 2: label 77 is out of range: expected 0 to 9"):
        read_rows(shard, 1, 3)


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    write(tmp_path, "binary", "folder")
    (tmp_path / "data_batch_1.bin").unlink()
    with pytest.raises(DataError, match="batch 1 of the training data is missing"):
        open_source(str(tmp_path), split="train")


def test_an_archive_of_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.tar.gz"
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(DataError, match=r"other\.tar\.gz: expected batches of CIFAR-10's train split, got none"):
        open_source(str(path), split="train")
    path.write_bytes(b"no gzip at all")
    with pytest.raises(DataError, match=r"other\.tar\.gz: damaged gzip stream"):
        open_source(str(path), split="train")
