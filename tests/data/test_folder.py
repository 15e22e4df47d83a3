from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raypurify import images
from raypurify.data import DataError, open_source, read_rows


def write(root: Path, classes: dict[str, int], side: int = 4) -> dict[str, np.ndarray]:
    """Class folders with so many images each, some deeper; returns them by key."""
    rng = np.random.default_rng(len(classes))
    written = {}
    for name, count in classes.items():
        for number in range(count):
            key = f"{name}/{'deep/' * (number % 2)}{number}.{'PNG' if number % 3 else 'png'}"
            image = rng.integers(0, 256, (side, side + number % 2, 3), dtype=np.uint8)
            (root / key).parent.mkdir(parents=True, exist_ok=True)
            (root / key).write_bytes(images.encode_png(image))
            written[key] = image
    return written


def test_split_folders(tmp_path: Path) -> None:
    train = write(tmp_path / "train", {"cats": 5, "dogs": 4})
    write(tmp_path / "val", {"cats": 2, "emus": 1})
    (tmp_path / "train" / "cats" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / ".hidden" / "a.png").write_bytes(b"")
    source = open_source(str(tmp_path), split="train")
    assert (source.rows, source.classes, source.image_shape) == (9, ("cats", "dogs", "emus"), None)
    rows = read_rows(source.shards[0], 0, 9)
    assert sorted(rows.ids) == sorted(f"train/{key}" for key in train)
    for key, image, label in zip(rows.ids, rows.images, rows.labels, strict=True):
        np.testing.assert_array_equal(image, train[key.removeprefix("train/")])
        assert source.classes[label] == key.split("/")[1]
    test = open_source(str(tmp_path), split="test")
    labels = read_rows(test.shards[0], 0, 3).labels
    assert sorted(labels.tolist()) == [0, 0, 2]


def test_without_split_folders_a_hash_splits(tmp_path: Path) -> None:
    written = write(tmp_path / "d", {"cats": 60, "dogs": 60})
    ids = {}
    for split in ("train", "test"):
        source = open_source(str(tmp_path / "d"), split=split)
        rows = read_rows(source.shards[0], 0, source.rows)
        ids[split] = rows.ids
        assert source.classes == ("cats", "dogs")
        assert all(source.classes[label] == key.split("/")[0] for key, label in zip(rows.ids, rows.labels, strict=True))
    assert sorted(ids["train"] + ids["test"]) == sorted(written)
    assert 10 <= len(ids["test"]) <= 30
    first = open_source(str(tmp_path / "d"), split="train", limit=20)
    labels = read_rows(first.shards[0], 0, 20).labels
    assert set(labels.tolist()) == {0, 1}
    (tmp_path / "other").mkdir()
    (tmp_path / "d").rename(tmp_path / "other" / "d")
    moved = open_source(str(tmp_path / "other" / "d"), split="train", limit=20)
    assert moved.fingerprint == first.fingerprint
    assert moved.shards[0].extra["keys"] == first.shards[0].extra["keys"]


def test_a_split_that_no_image_falls_into_is_told(tmp_path: Path) -> None:
    write(tmp_path, {"cats": 1, "dogs": 1})
    with pytest.raises(DataError, match=r"none of its 2 images is in the test split: a sixth of them.* a folder test$"):
        open_source(str(tmp_path), split="test")


def test_what_is_no_image_and_what_is_in_no_class_folder_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "train", {"cats": 5, "dogs": 4})
    for name in ("cats/a.HEIC", "cats/b.heic", "dogs/Thumbs.db", "cats/.DS_Store"):
        (tmp_path / "train" / name).write_bytes(b"")
    for name in ("beside.png", "_folder/a.jfif"):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_bytes(b"")
    source = open_source(str(tmp_path), split="train")
    assert source.rows == 9
    assert dict(source.skipped) == {".heic": 2, ".db": 1, "outside the class folders": 2}


def test_many_images_make_several_shards(tmp_path: Path) -> None:
    write(tmp_path / "train", {"cats": 700, "dogs": 700}, side=1)
    source = open_source(str(tmp_path), split="train")
    assert [shard.rows for shard in source.shards] == [1024, 376]
    rows = read_rows(source.shards[1], 370, 376)
    assert rows.ids == list(source.shards[1].extra["keys"][370:])


def test_unreadable_files_are_rejects(tmp_path: Path) -> None:
    written = write(tmp_path / "train", {"cats": 4})
    source = open_source(str(tmp_path), split="train")
    gone, broken, *rest = source.shards[0].extra["keys"]
    (tmp_path / gone).unlink()
    (tmp_path / broken).write_bytes((tmp_path / broken).read_bytes()[:50])
    rows = read_rows(source.shards[0], 0, 4)
    assert rows.ids == rest
    assert len(rows.images) == len(rows.labels) == len(written) - 2
    assert [(reject["id"], reject["url"], reject["stage"]) for reject in rows.rejects] == [
        (gone, str(tmp_path / gone), "read"),
        (broken, str(tmp_path / broken), "decode"),
    ]
    assert "there is no such file" in rows.rejects[0]["reason"]


def test_names_with_the_signs_of_patterns(tmp_path: Path) -> None:
    written = write(tmp_path / "train", {"[cats]*": 2, "dogs?": 2, "#1 {a,b}": 2})
    source = open_source(str(tmp_path), split="train")
    rows = read_rows(source.shards[0], 0, source.rows)
    assert (sorted(rows.ids), rows.rejects) == (sorted(f"train/{key}" for key in written), [])


def test_no_images_and_no_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data of the train split found here; expected MNIST's IDX files"):
        open_source(str(tmp_path), split="train")
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(DataError, match=r"file\.txt: no data of the train split"):
        open_source(str(tmp_path / "file.txt"), split="train")
    write(tmp_path / "train", {"cats": 1})
    with pytest.raises(DataError, match="expected a folder test or validation or valid or val, got the folders"):
        open_source(str(tmp_path), split="test")
