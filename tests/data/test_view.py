"""Views: how images of a dataset are shown, in whatever format they lie."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from raypurify import images
from raypurify.data import DataError, View, check_ids, headers_of, open_source, read_rows, shape_of

SIZES = [(40, 30), (30, 40), (36, 36), (90, 20), (12, 40)]
"""Width and height of the images of a dataset; the last one is small."""
VIEW = View(resize=20, crop=16)


def photographs() -> list[NDArray[np.uint8]]:
    draws = np.random.default_rng(0)
    return [draws.integers(0, 256, (height, width, 3), np.uint8) for width, height in SIZES]


def folder(root: Path) -> str:
    for index, pixels in enumerate(photographs()):
        path = root / "test" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return str(root)


def parquet(root: Path) -> str:
    encoded = [images.encode_png(pixels) for pixels in photographs()]
    ids = [f"{index}.png" for index in range(len(encoded))]
    pq.write_table(pa.table({"image": encoded, "label": [0, 1] * 2 + [0], "id": ids}), root / "test.parquet")
    return str(root)


@pytest.mark.parametrize(
    ("view", "stored", "shown"),
    [
        (View(), (375, 500), (375, 500)),
        (View(resize=100), (375, 500), (100, 133)),
        (View(resize=100), (500, 333), (150, 100)),
        (View(resize=256), (28, 28), (256, 256)),
        (View(resize=100, crop=96), (375, 500), (96, 96)),
        (View(crop=28), (32, 28), (28, 28)),
    ],
)
def test_the_shorter_side_counts_and_the_longer_one_follows(
    view: View, stored: tuple[int, int], shown: tuple[int, int]
) -> None:
    for channels in (1, 3):
        assert view.shape((*stored, channels)) == (*shown, channels)
        assert view.show(np.zeros((*stored, channels), np.uint8)).shape == (*shown, channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_pillows_bicubic_ones_around_the_centre(channels: int) -> None:
    pixels = photographs()[0][:, :, :channels]
    resized = Image.fromarray(pixels.squeeze()).resize((26, 20), Image.Resampling.BICUBIC)
    shown = np.asarray(resized).reshape(20, 26, channels)[2:18, 5:21]
    np.testing.assert_array_equal(VIEW.show(pixels), shown)


def test_a_place_at_random_follows_from_its_text() -> None:
    pixels = np.arange(8 * 9, dtype=np.uint8).reshape(8, 9, 1)
    view = View(crop=6)
    corners = [int(view.show(pixels, f"7 {name}")[0, 0, 0]) for name in range(400)]
    assert sorted(set(corners)) == [row * 9 + column for row in range(3) for column in range(4)]
    assert np.bincount(corners)[corners].min() > 15
    assert corners == [int(view.show(pixels, f"7 {name}")[0, 0, 0]) for name in range(400)]
    assert view.show(pixels)[0, 0, 0] == 9 + 2  # half of 3 columns is rounded to an even number, as torchvision does


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ({"resize": 0}, "resize must be at least 1; got 0"),
        ({"crop": -1}, "crop must be at least 1; got -1"),
        ({"resize": 10, "crop": 11}, "crop must be at most resize=10; got 11"),
    ],
)
def test_a_view_that_cannot_be_is_refused(sides: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        View(**sides)


@pytest.mark.parametrize("write", [folder, parquet])
def test_each_row_is_shown_by_the_view(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = open_source(write(tmp_path), split="test", view=VIEW)
    assert (shape_of(source), source.name) == ((16, 16, 3), f"{tmp_path.name} (resize 20, crop 16)")
    rows = read_rows(source.shards[0], 0, source.rows)
    for name, image in zip(rows.ids, rows.images, strict=True):
        np.testing.assert_array_equal(image, VIEW.show(photographs()[int(name[-5])]))
    stored = open_source(str(tmp_path), split="test")
    assert (stored.fingerprint, stored.origin) == (source.fingerprint, source.origin)
    assert read_rows(stored.shards[0], 0, 5).ids == rows.ids


@pytest.mark.parametrize("write", [folder, parquet])
def test_an_image_that_is_smaller_than_the_crop_is_rejected_by_its_name(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = open_source(write(tmp_path), split="test", view=View(crop=16))
    rows = read_rows(source.shards[0], 0, source.rows)
    assert len(rows.ids) == 4
    (reject,) = rows.rejects
    assert reject["id"].endswith("4.png")
    assert reject["reason"] == "12x40 pixels are too few for --crop 16; give --resize 16 too"


def test_any_format_is_shown_by_the_view() -> None:
    source = open_source("squares:source", split="test", view=View(resize=6, crop=4))
    assert source.image_shape == (4, 4, 1)
    check_ids(source)
    rows = read_rows(source.shards[0], 2, 4)
    assert np.asarray(rows.images).shape == (2, 4, 4, 1)
    assert (rows.ids, rows.labels.tolist()) == (["squares-test#2", "squares-test#3"], [0, 1])
    with pytest.raises(ValueError, match="8x8 pixels are too few for --crop 9"):
        open_source("squares:source", split="test", view=View(crop=9))


@pytest.mark.parametrize("write", [folder, parquet])
def test_shapes_are_told_by_headers(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    write(tmp_path)
    found = dict(headers_of(open_source(str(tmp_path), split="test")))
    assert {name[-5:]: shape for name, shape in found.items()} == {
        f"{index}.png": (height, width, 3) for index, (width, height) in enumerate(SIZES)
    }
    cropped = headers_of(open_source(str(tmp_path), split="test", view=View(crop=16)))
    assert [shape for _, shape in cropped] == [(16, 16, 3)] * 4
    assert headers_of(open_source("digits", split="test")) == []


def test_a_header_that_cannot_be_read_tells_nothing(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "test/a/0.png").write_bytes(b"no image")
    (tmp_path / "test/a/2.png").write_bytes(b"")
    assert len(headers_of(open_source(str(tmp_path), split="test"))) == 3


def test_a_place_without_images_of_a_split_is_refused_as_before(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data of the test split"):
        open_source(str(tmp_path), split="test", view=VIEW)
