"""The order of training images: a function of the seed and the epoch, whatever the number of workers."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypurify.data import (
    DataError,
    Rows,
    Shard,
    Source,
    View,
    labels_of,
    narrowed,
    open_source,
    read_parts,
    read_rows,
)
from raypurify.data.formats import parquet
from raypurify.images import encode_png
from raypurify.training.order import (
    BLOCK_BYTES,
    KEPT_BYTES,
    LANES,
    WINDOW_BYTES,
    EpochOrder,
    epoch_batches,
    held_out_rows,
    hold_out,
    read_window,
)

SHAPE = (28, 28, 1)


def order(rank: int = 0, workers: int = 1, seed: int = 3, batch: int = 64, source: Source | None = None) -> EpochOrder:
    source = open_source("digits", split="train") if source is None else source
    return EpochOrder(source=source, image_shape=SHAPE, seed=seed, batch=batch, rank=rank, workers=workers)


def rows(part: EpochOrder, epoch: int) -> list[tuple[int, int]]:
    """(shard, row) of every image that a worker reads in an epoch."""
    windows = [part.window(epoch, number).reshape(-1, 2) for number in range(part.windows)]
    return [(shard, row) for shard, row in np.concatenate(windows).tolist()]


def table(part: EpochOrder, epoch: int) -> pa.Table:
    return pa.concat_tables(
        block for number in range(part.windows) for block in read_window(part, epoch, number)
    ).combine_chunks()


def sorted_parquet(folder: Path, classes: int, each: int, group: int, side: int = 2) -> Source:
    """Images sorted by class, each of its own pixels."""
    images = np.zeros((classes * each, side, side, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.arange(len(images)) % 251, np.arange(len(images)) // 251
    columns = {"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images)}
    columns["label"] = pa.array(np.repeat(np.arange(classes), each))
    pq.write_table(pa.table(columns), folder / "train.parquet", row_group_size=group)
    return open_source(str(folder), split="train")


def test_an_epoch_sees_each_image_once() -> None:
    seen = rows(order(), 0)
    assert len(seen) == len(set(seen)) == order().steps * 64
    assert order().steps == 1500 // LANES // (64 // LANES)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    assert rows(order(), 0) != rows(order(), 1)
    assert rows(order(), 0) != rows(order(seed=4), 0)
    assert rows(order(), 1) == rows(order(), 1)


def test_an_epoch_is_entered_at_a_step_without_reading_what_comes_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sorted_parquet(tmp_path, classes=10, each=2000, group=500)
    part = dataclasses.replace(order(1, 2, source=source), image_shape=(2, 2, 1))
    assert part.windows > 2
    whole = [*epoch_batches(part, 1)]
    read = []

    def counted(shard: Shard, parts: list[np.ndarray]) -> Iterator[Rows]:
        read.append(sum(map(len, parts)))
        return read_parts(shard, parts)

    monkeypatch.setattr("raypurify.training.order.read_parts", counted)
    for first in (1, part.window_steps, 2 * part.window_steps + 3, part.steps - 1):
        read.clear()
        rest = [*epoch_batches(part, 1, first)]
        assert len(rest) == part.steps - first
        assert sum(read) == len(rest) * 32
        for batch, expected in zip(rest, whole[first:], strict=True):
            assert all(np.array_equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("workers", "batch"), [(2, 64), (4, 64), (8, 64), (3, 120), (5, 120), (16, 64), (64, 64)])
def test_workers_share_the_global_batch_of_one(workers: int, batch: int) -> None:
    alone = table(order(batch=batch), 2)
    shares = [table(order(rank, workers, batch=batch), 2) for rank in range(workers)]
    local = batch // workers
    for step in range(order(batch=batch).steps):
        together = pa.concat_tables(share.slice(step * local, local) for share in shares)
        for name in ("id", "seed", "label"):
            assert together[name].to_pylist() == alone[name].slice(step * batch, batch).to_pylist()
    assert len({seed for share in shares for seed in share["seed"].to_pylist()}) == len(alone)


def test_a_block_holds_the_images_of_its_labels() -> None:
    source = open_source("digits", split="train")
    everything = read_rows(source.shards[0], 0, source.rows)
    label_of = {
        image.tobytes(): label for image, label in zip(everything.images, everything.labels.tolist(), strict=True)
    }
    block = table(order(), 0)
    images = block["image"].combine_chunks().to_numpy_ndarray()
    assert images.dtype == np.uint8
    assert images.shape == (len(block), 28, 28, 1)
    assert [label_of[image.tobytes()] for image in images] == block["label"].to_pylist()
    assert block["reject"].null_count == len(block)


@pytest.mark.parametrize(
    ("each", "group"),
    [(1200, 12_000), (1200, 1200), (1200, 100), (15_000, 1000)],
    ids=["one row group", "a row group a class", "short row groups", "a long epoch"],
)
def test_each_batch_of_sorted_data_holds_all_classes(tmp_path: Path, each: int, group: int) -> None:
    source = sorted_parquet(tmp_path, classes=10, each=each, group=group)
    part = EpochOrder(source=source, image_shape=(2, 2, 1), seed=0, batch=128)
    labels = labels_of(source)
    firsts = np.cumsum([0, *(shard.rows for shard in source.shards)])
    for number in (0, part.windows // 2):
        window = part.window(0, number)
        batches = numbers = labels[firsts[window[:, :, 0]] + window[:, :, 1]]
        absent = [10 - len(set(batch)) for batch in batches.tolist()]
        assert np.mean(absent) < 1.5
        assert np.bincount(numbers.ravel(), minlength=10).min() > 0
        # How often a row group is read for the rows that are taken of it.
        read = sum(source.shards[shard].rows for shard in np.unique(window[:, :, 0]).tolist())
        assert read / window[:, :, 0].size <= max(8, part.windows)


def test_the_windows_of_an_epoch_read_each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sorted_parquet(tmp_path, classes=10, each=2000, group=1000)
    part = EpochOrder(source=source, image_shape=(2, 2, 1), seed=0, batch=128)
    assert part.windows > 1
    read: list[int] = []
    read_table = parquet._read_table

    def counted(shard: Shard, rows: np.ndarray) -> pa.Table:
        read.append(len(rows))
        return read_table(shard, rows)

    monkeypatch.setattr(parquet, "_read_table", counted)
    monkeypatch.setattr(parquet, "_kept", {})
    monkeypatch.setattr(parquet, "_room", KEPT_BYTES)
    assert len(table(part, 0)) == part.steps * 128
    assert sum(read) == source.rows


def test_large_images_come_in_blocks_of_bounded_bytes(tmp_path: Path) -> None:
    source = sorted_parquet(tmp_path, classes=4, each=60, group=80, side=2)
    shape = (2048, 2048, 3)
    large = EpochOrder(source=source, image_shape=shape, seed=0, batch=16)
    assert large.block_steps == 1, "a batch of 16 is over 32 MiB already"
    assert large.window_steps * 16 * int(np.prod(shape)) <= WINDOW_BYTES
    small = EpochOrder(source=source, image_shape=(512, 512, 3), seed=0, batch=16)
    assert small.block_steps * 16 * 512 * 512 * 3 <= BLOCK_BYTES < small.window_steps * 16 * 512 * 512 * 3


def test_held_out_rows_are_as_many_as_asked_and_never_trained_on() -> None:
    source = open_source("digits", split="train")
    labels = labels_of(source)
    by_class = narrowed(source, np.sort(np.argsort(labels, kind="stable")[:700]))  # classes 0 to 3 and some of 4
    labels = labels_of(by_class)
    kept, held = hold_out(by_class, labels, 120, seed=0)
    assert (kept.rows, held.rows) == (580, 120)
    ids = [{name for part in held_out_rows(some, SHAPE, 0, 1) for name in part.ids} for some in (kept, held)]
    assert not ids[0] & ids[1]
    assert len(ids[0] | ids[1]) == 700
    counts = Counter(labels_of(held).tolist())
    assert all(abs(counts[label] - 120 * (labels == label).mean()) <= 1 for label in range(5))
    again, other = (labels_of(hold_out(by_class, labels, 120, seed=seed)[1]).tolist() for seed in (0, 1))
    assert again == labels_of(held).tolist()
    assert again != other
    parts = [[name for part in held_out_rows(held, SHAPE, rank, 4) for name in part.ids] for rank in range(4)]
    assert sorted(name for part in parts for name in part) == sorted(ids[1])
    assert hold_out(by_class, labels, 0, seed=0)[1].rows == 0
    with pytest.raises(ValueError, match="701 images to hold out are more than the 700"):
        hold_out(by_class, labels, 701, seed=0)
    with pytest.raises(ValueError, match="700 images to hold out leave none to train on"):
        hold_out(by_class, labels, 700, seed=0)


def test_images_that_cannot_be_decoded_are_replaced_alike_for_any_workers(tmp_path: Path) -> None:
    encoded = [encode_png(np.full((4, 4, 1), row, np.uint8)) for row in range(200)]
    for row in (3, 4, 150, 199):
        encoded[row] = b"no image"
    pq.write_table(
        pa.table({"image": encoded, "label": np.arange(200) % 4}), tmp_path / "train.parquet", row_group_size=40
    )
    source = open_source(str(tmp_path), split="train")

    def part(rank: int, workers: int) -> EpochOrder:
        return EpochOrder(source=source, image_shape=(4, 4, 1), seed=0, batch=40, rank=rank, workers=workers)

    alone = table(part(0, 1), 0)
    rejects = {json.loads(text)["id"] for text in alone["reject"].to_pylist() if text}
    assert rejects == {f"train.parquet#{row}" for row in (3, 4, 150, 199)}
    pixels = alone["image"].combine_chunks().to_numpy_ndarray()[:, 0, 0, 0]
    assert pixels[alone["reject"].is_valid().to_numpy()].tolist().count(5) == 2, "3 and 4 are replaced by the next"
    assert (pixels % 4).tolist() == alone["label"].to_pylist()
    shares = [table(part(rank, 4), 0) for rank in range(4)]
    together = pa.concat_tables(share.slice(step * 10, 10) for step in range(5) for share in shares)
    assert together["seed"].to_pylist() == alone["seed"].to_pylist()


def test_crops_are_at_random_in_training_alike_for_any_workers(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (80, 9, 12, 1), np.uint8)
    table_of = pa.table({"image": [encode_png(image) for image in images], "label": np.arange(80) % 2})
    pq.write_table(table_of, tmp_path / "train.parquet", row_group_size=30)
    source = open_source(str(tmp_path), split="train", view=View(resize=8, crop=6))

    def part(rank: int, workers: int) -> EpochOrder:
        size = {"image_shape": (6, 6, 1), "batch": 40, "crops_at_random": True}
        return EpochOrder(source=source, seed=0, rank=rank, workers=workers, **size)

    def by_id(epoch: int, workers: int) -> dict[str, bytes]:
        found = {}
        for one in (table(part(rank, workers), epoch) for rank in range(workers)):
            pixels = one["image"].combine_chunks().to_numpy_ndarray()
            found |= {name: image.tobytes() for name, image in zip(one["id"].to_pylist(), pixels, strict=True)}
        return found

    first = by_id(0, 1)
    assert first == by_id(0, 2) == by_id(0, 8)
    held = [image.tobytes() for rows in held_out_rows(source, (6, 6, 1), 0, 1) for image in rows.images]
    assert held == [source.view.show(image).tobytes() for image in images]
    centres = {f"train.parquet#{row}": pixels for row, pixels in enumerate(held)}
    # One place in nine is the centre, and one in nine is drawn again.
    assert sum(first[name] == centres[name] for name in first) < 30
    assert sum(first[name] == pixels for name, pixels in by_id(1, 1).items()) < 30


def test_an_image_of_another_shape_is_named(tmp_path: Path) -> None:
    encoded = [encode_png(np.zeros((4, 4 + (row == 70), 1), np.uint8)) for row in range(80)]
    pq.write_table(pa.table({"image": encoded, "label": np.arange(80) % 2}), tmp_path / "train.parquet")
    source = open_source(str(tmp_path), split="train")
    part = EpochOrder(source=source, image_shape=(4, 4, 1), seed=0, batch=80)
    with pytest.raises(DataError, match=r"train\.parquet#70: .* expected .* \(4, 4, 1\), got \(4, 5, 1\)"):
        table(part, 0)
    held = narrowed(source, np.arange(60, 80))
    with pytest.raises(DataError, match=r"train\.parquet#70: .* expected .* \(4, 4, 1\), got \(4, 5, 1\)"):
        list(held_out_rows(held, (4, 4, 1), 0, 1))


def test_the_order_of_many_shards_counts_their_rows_once() -> None:
    class Shards(tuple[Shard, ...]):
        passes = 0

        def __iter__(self) -> Iterator[Shard]:
            Shards.passes += 1
            return super().__iter__()

    digits = open_source("digits", split="train")
    shards = Shards(dataclasses.replace(digits.shards[0], rows=5, first=first) for first in range(0, 1500, 5))
    part = order(source=dataclasses.replace(digits, shards=shards))
    assert len(set(rows(part, epoch=0))) == 1472
    assert Shards.passes < 10


def test_refuses_what_does_not_divide() -> None:
    with pytest.raises(ValueError, match="batch must be a multiple of 8"):
        order(batch=60)
    with pytest.raises(ValueError, match="workers must divide the batch of 64; got 3"):
        order(workers=3)
    with pytest.raises(ValueError, match="needs more than the 40 rows"):
        order(source=open_source("digits", split="train", limit=40))
