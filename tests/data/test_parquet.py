from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from permissions import unreadable

from raypurify import images
from raypurify.data import NO_LABEL, DataError, Origin, files, labels_of, open_source, read_parts, read_rows
from raypurify.data.formats import parquet

ROWS = 25
LABELS = [row % 4 for row in range(ROWS)]


def pixels(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (ROWS, 6, 5, channels), dtype=np.uint8)


def encoded() -> list[bytes]:
    return [images.encode_png(image) for image in pixels()]


def hugging_face(name: str = "img") -> pa.Table:
    structs = [{"bytes": data, "path": f"{row}.png"} for row, data in enumerate(encoded())]
    return pa.table({name: structs, "label": LABELS})


def tensors(array: np.ndarray) -> pa.Table:
    return pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(array), "label": LABELS})


def lists(array: np.ndarray, kind: pa.DataType, **columns: object) -> pa.Table:
    flat = pa.array([image.reshape(-1) for image in array], kind)
    return pa.table({"image": flat, "shape": [list(image.shape) for image in array], "label": LABELS, **columns})


TABLES = {
    "hugging face img": hugging_face(),
    "hugging face image": hugging_face("image"),
    "encoded": pa.table({"image": encoded(), "label": LABELS}),
    "large binary": pa.table({"image": pa.array(encoded(), pa.large_binary()), "label": pa.array(LABELS, pa.uint8())}),
    "tensor": tensors(pixels()),
    "list": lists(pixels(), pa.list_(pa.uint8())),
    "large list": lists(pixels(), pa.large_list(pa.uint8())),
    "fixed list": lists(pixels(), pa.list_(pa.uint8(), 90)),
}


@pytest.mark.parametrize("name", TABLES)
def test_round_trip(tmp_path: Path, name: str) -> None:
    path = tmp_path / "train-00000-of-00001.parquet"
    pq.write_table(TABLES[name], path, row_group_size=10)
    source = open_source(str(tmp_path), split="train")
    assert [(shard.rows, shard.first, shard.row_group) for shard in source.shards] == [
        (10, 0, 0),
        (10, 10, 1),
        (5, 20, 2),
    ]
    assert source.classes == 4
    assert source.image_shape == ((6, 5, 3) if name == "tensor" else None)
    rows = read_rows(source.shards[1], 3, 9)
    assert rows.ids == [f"{path.name}#{row}" for row in range(13, 19)]
    np.testing.assert_array_equal(rows.images, pixels()[13:19])
    assert rows.labels.tolist() == LABELS[13:19]
    assert rows.labels.dtype == np.int64


def test_grey_tensors_without_a_channel(tmp_path: Path) -> None:
    grey = pixels(1)
    pq.write_table(tensors(grey[..., 0]), tmp_path / "test.parquet")
    source = open_source(str(tmp_path / "test.parquet"), split="test")
    assert source.image_shape == (6, 5, 1)
    np.testing.assert_array_equal(read_rows(source.shards[0], 0, ROWS).images, grey)


def test_ids_of_their_own_no_labels_and_several_shapes(tmp_path: Path) -> None:
    shapes = [(4, 4, 1), (5, 3, 3), (4, 4, 3)]
    arrays = [np.full(shape, row, np.uint8) for row, shape in enumerate(shapes)]
    table = pa.table(
        {
            "id": ["cats/a.png", "cats/b.png", "dogs/c.png"],
            "image": pa.array([array.reshape(-1) for array in arrays], pa.list_(pa.uint8())),
            "shape": [list(shape) for shape in shapes],
        }
    )
    pq.write_table(table, tmp_path / "test-0.parquet")
    source = open_source(str(tmp_path), split="test")
    assert source.classes == 0
    rows = read_rows(source.shards[0], 1, 3)
    assert rows.ids == ["cats/b.png", "dogs/c.png"]
    assert rows.labels.tolist() == [NO_LABEL, NO_LABEL]
    assert isinstance(rows.images, list)
    assert [image.shape for image in rows.images] == shapes[1:]


def test_any_run_of_a_large_row_group(tmp_path: Path) -> None:
    rows = 5000
    array = np.random.default_rng(1).integers(0, 256, (rows, 2, 2, 1), dtype=np.uint8)
    table = pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(array)})
    pq.write_table(table, tmp_path / "train-a.parquet", row_group_size=rows)
    shard = open_source(str(tmp_path), split="train").shards[0]
    for start, stop in ((0, 1), (1000, 1100), (1024, 2048), (0, rows), (rows - 1, rows), (7, 7)):
        read = read_rows(shard, start, stop)
        np.testing.assert_array_equal(np.asarray(read.images).reshape(-1, 2, 2, 1), array[start:stop])
        assert read.ids == [f"train-a.parquet#{row}" for row in range(start, stop)]


def test_few_rows_of_a_large_row_group_hold_no_others(tmp_path: Path) -> None:
    padded = [data + bytes(10_000) for data in encoded()] * 200
    pq.write_table(pa.table({"image": padded, "label": LABELS * 200}), tmp_path / "train.parquet")
    shard = open_source(str(tmp_path), split="train").shards[0]
    parts = read_parts(shard, [np.array([3]), np.arange(1100, 5000, 1024)])
    before = pa.total_allocated_bytes()
    assert next(parts).ids == ["train.parquet#3"]
    assert pa.total_allocated_bytes() - before < 500_000


@pytest.mark.parametrize("layout", ["{split}-00000.parquet", "{split}/0.parquet", "data/{split}-0.parquet"])
def test_splits(tmp_path: Path, layout: str) -> None:
    for split, rows in (("train", 9), ("validation", 5)):
        path = tmp_path / layout.format(split=split)
        path.parent.mkdir(exist_ok=True)
        pq.write_table(hugging_face().slice(0, rows), path)
    train = open_source(str(tmp_path), split="train")
    assert (train.rows, train.shards[0].key) == (9, layout.format(split="train"))
    assert open_source(str(tmp_path), split="test").rows == 5


def test_the_other_split_is_never_taken(tmp_path: Path) -> None:
    path = tmp_path / "train-0.parquet"
    pq.write_table(hugging_face(), path)
    for url in (tmp_path, path):
        with pytest.raises(DataError, match="no Parquet of the test split here: the files are named train"):
            open_source(str(url), split="test")


@pytest.mark.parametrize("own_ids", [False, True])
def test_unnamed_files_are_split_by_a_hash_of_the_ids(tmp_path: Path, own_ids: bool) -> None:
    table = pa.table({"image": encoded() * 24, "label": LABELS * 24})
    if own_ids:
        table = table.append_column("id", pa.array([f"image {row}" for row in range(len(table))]))
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    parts = {}
    for url in (tmp_path, tmp_path / "a.parquet"):
        for split in ("train", "test"):
            source = open_source(str(url), split=split)
            rows = [read_rows(shard, 0, shard.rows) for shard in source.shards]
            parts[split] = [name for part in rows for name in part.ids]
            assert labels_of(source).tolist() == [label for part in rows for label in part.labels.tolist()]
            assert source.origin.split_by == "ids"
        assert not set(parts["train"]) & set(parts["test"])
        assert len(set(parts["train"] + parts["test"])) == 600
        assert 70 <= len(parts["test"]) <= 130  # a sixth


def test_the_same_rows_are_known_under_another_name(tmp_path: Path) -> None:
    def origin(name: str, split: Literal["train", "test"], rows: int = ROWS) -> Origin:
        pq.write_table(hugging_face().slice(0, rows), tmp_path / name)
        return open_source(str(tmp_path / name), split=split).origin

    train = origin("a.parquet", "train")
    assert train.overlaps(origin("b.parquet", "train"))
    assert train.overlaps(origin("test.parquet", "test"))
    assert origin("test.parquet", "test").overlaps(origin("val-0.parquet", "test"))
    assert not train.overlaps(origin("a.parquet", "test"))
    assert origin("b.parquet", "test").rows == origin("a.parquet", "test").rows, "a name decides nothing"
    assert not train.overlaps(origin("a.parquet", "train", rows=20))


def test_class_names_of_hugging_face(tmp_path: Path) -> None:
    info = {"info": {"features": {"label": {"names": ["a", "b", "c", "d", "e"], "_type": "ClassLabel"}}}}
    table = hugging_face().replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert open_source(str(tmp_path), split="train").classes == ("a", "b", "c", "d", "e")


def test_classes_without_statistics(tmp_path: Path) -> None:
    pq.write_table(hugging_face(), tmp_path / "a.parquet", write_statistics=False)
    assert open_source(str(tmp_path), split="train").classes == 4


def test_images_that_cannot_be_decoded_are_rejects(tmp_path: Path) -> None:
    data: list[bytes | None] = list(encoded())
    data[1] = (data[1] or b"")[:60]
    data[3] = b"no image"
    data[4] = None
    path = tmp_path / "train-a.parquet"
    pq.write_table(pa.table({"image": data, "label": LABELS}), path)
    rows = read_rows(open_source(str(tmp_path), split="train").shards[0], 0, 6)
    assert rows.ids == [f"train-a.parquet#{row}" for row in (0, 2, 5)]
    np.testing.assert_array_equal(rows.images, pixels()[[0, 2, 5]])
    assert rows.labels.tolist() == [LABELS[row] for row in (0, 2, 5)]
    assert [(reject["id"], reject["url"], reject["stage"]) for reject in rows.rejects] == [
        (f"train-a.parquet#{row}", str(path), "decode") for row in (1, 3, 4)
    ]
    assert "is not an image" in rows.rejects[1]["reason"]
    assert rows.rejects[2]["reason"] == "the image is null"


def test_raw_pixels_that_do_not_fit_their_shape_are_rejects(tmp_path: Path) -> None:
    table = lists(pixels(), pa.list_(pa.uint8()))
    shapes = [[6, 5, 3]] * ROWS
    shapes[2] = [6, 5, 4]
    table = table.set_column(1, "shape", pa.array(shapes))
    pq.write_table(table, tmp_path / "train-a.parquet")
    rows = read_rows(open_source(str(tmp_path), split="train").shards[0], 0, 4)
    assert len(rows.ids) == 3
    assert "of 90 values, got [6, 5, 4]" in rows.rejects[0]["reason"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"picture": encoded()}), r"expected a column 'image' or 'img', got the columns \['picture'\]"),
        (pa.table({"image": ["a", "b"]}), "expected encoded images .* got string"),
        (tensors(pixels().astype(np.int32)), "expected a tensor .* of uint8, got .*int32"),
        (tensors(pixels(4)), r"expected a tensor \(H, W\) or \(H, W, 1 or 3\)"),
        (lists(pixels(), pa.list_(pa.uint8())).drop(["shape"]), "expected their shape in a column 'shape'"),
        (pa.table({"image": encoded(), "label": ["cat"] * ROWS}), "column 'label': expected integers, got string"),
        (pa.table({"image": encoded(), "id": LABELS}), "column 'id': expected strings, got int64"),
        (pa.table({"image": encoded(), "label": [-1] * ROWS}), "all labels are negative"),
        (hugging_face().slice(0, 0), "there are no rows"),
    ],
)
def test_a_table_of_something_else_is_named(tmp_path: Path, table: pa.Table, message: str) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"a\.parquet: .*{message}"):
        open_source(str(tmp_path), split="train")


@pytest.mark.parametrize(
    ("value", "message"),
    [(-1, "row 12: label -1 is out of range: expected 0 to 3"), (None, "row 12: the label is null")],
)
def test_a_wrong_label_is_named_with_its_row(tmp_path: Path, value: int | None, message: str) -> None:
    labels = [*LABELS[:12], value, *LABELS[13:]]
    pq.write_table(pa.table({"image": encoded(), "label": labels}), tmp_path / "train-a.parquet", row_group_size=10)
    shard = open_source(str(tmp_path), split="train").shards[1]
    with pytest.raises(DataError, match=rf"a\.parquet, {message}"):
        read_rows(shard, 1, 4)


def test_files_with_other_labels_are_named(tmp_path: Path) -> None:
    pq.write_table(hugging_face(), tmp_path / "a.parquet")
    pq.write_table(hugging_face().drop(["label"]), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: its label column \(None\)"):
        open_source(str(tmp_path), split="train")


@pytest.mark.parametrize("kept", [0, 3, 500, -1])
def test_a_truncated_file_is_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(hugging_face(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"a\.parquet.*: "):
        open_source(str(tmp_path), split="train")


def test_damaged_pages_are_named_when_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(hugging_face(), path, compression="zstd", row_group_size=10)
    shard = open_source(str(path), split="train").shards[1]
    data = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(1).column(0)
    first = column.dictionary_page_offset or column.data_page_offset
    data[first : first + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"a\.parquet, row group 1: "):
        read_rows(shard, 0, 5)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": [b""], "label": [0]}), path)
    with unreadable(path), pytest.raises(DataError, match=r"^\S+/train\.parquet: permission denied: [^;]+$"):
        open_source(str(tmp_path), split="train")


def test_a_kept_row_group_is_read_from_the_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"image": encoded(), "label": np.arange(ROWS)})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=3)
    first, second = open_source(str(tmp_path), split="train").shards[:2]
    opened: list[str] = []
    open_file = files.open_file
    monkeypatch.setattr(files, "open_file", lambda url: [opened.append(url), open_file(url)][1])
    monkeypatch.setattr(parquet, "_kept", {})
    parts = [np.array([2]), np.array([1, 0])]
    room = pq.ParquetFile(tmp_path / "train.parquet").metadata.row_group(0).total_byte_size
    monkeypatch.setattr(parquet, "_room", room)
    for shard, reads in ((first, 1), (second, 2)):
        opened.clear()
        for _ in range(2):
            found = list(read_parts(shard, parts))
            assert [rows.ids for rows in found] == [
                [f"train.parquet#{shard.first + row}" for row in part] for part in parts
            ]
            assert [rows.labels.tolist() for rows in found] == [(shard.first + part).tolist() for part in parts]
        assert len(opened) == reads
