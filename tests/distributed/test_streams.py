"""The order of training images: a function of the seed and the epoch, whatever the number of workers."""

from itertools import chain

import numpy as np
import pyarrow as pa
import pytest

from raypurify.data import open_source, read_rows
from raypurify.distributed import streams
from raypurify.distributed.streams import LANES, EpochOrder, hold_out, runs_of, training_block


def order(rank: int = 0, workers: int = 1, seed: int = 3, batch: int = 64, limit: int | None = None) -> EpochOrder:
    runs = runs_of(open_source("digits", split="train", limit=limit), length=50)
    return EpochOrder(runs=tuple(runs), seed=seed, batch=batch, rank=rank, workers=workers)


def rows(part: EpochOrder, epoch: int) -> list[tuple[str, int]]:
    """(key, row) of every image that a worker reads in an epoch."""
    pieces = chain.from_iterable(chain.from_iterable(part.windows(epoch)))
    return [(piece.shard.key, row) for piece in pieces for row in range(piece.start, piece.stop)]


def table(part: EpochOrder, epoch: int) -> pa.Table:
    return pa.concat_tables(training_block(lanes, part.part, part.seed, epoch) for lanes in part.windows(epoch))


def test_runs_cover_the_rows_in_order() -> None:
    source = open_source("digits", split="train")
    assert sum(run.rows for run in runs_of(source)) == source.rows
    middle = runs_of(source, first=100, last=410, length=128)
    assert [(run.start, run.stop) for run in middle] == [(100, 228), (228, 356), (356, 410)]


def test_an_epoch_sees_each_image_once() -> None:
    seen = rows(order(), 0)
    assert len(seen) == len(set(seen)) == order().steps * 64
    assert order().steps == 1500 // LANES // (64 // LANES)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    assert rows(order(), 0) != rows(order(), 1)
    assert rows(order(), 0) != rows(order(seed=4), 0)
    assert rows(order(), 1) == rows(order(), 1)


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_workers_share_the_global_batch_of_one(workers: int) -> None:
    alone = table(order(), 2)
    shares = [table(order(rank, workers), 2) for rank in range(workers)]
    local = 64 // workers
    for step in (0, 7, order().steps - 1):
        together = pa.concat_tables(share.slice(step * local, local) for share in shares)
        assert together["seed"].to_pylist() == alone["seed"].slice(step * 64, 64).to_pylist()
        assert together["label"].to_pylist() == alone["label"].slice(step * 64, 64).to_pylist()
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
    assert block["label"].to_pylist() != sorted(block["label"].to_pylist())


def test_rows_are_mixed_within_a_window() -> None:
    block = training_block(next(iter(order().windows(0))), 8, 3, 0)
    unmixed = [
        name
        for lane in next(iter(order().windows(0)))
        for run in lane
        for name in read_rows(run.shard, run.start, run.stop).ids
    ]
    seeds = [streams.seed_of(3, "image", 0, name) for name in unmixed]
    assert sorted(seeds) == sorted(block["seed"].to_pylist())
    assert seeds[:8] != block["seed"].to_pylist()[:8]


def test_held_out_rows_are_never_trained_on() -> None:
    runs = runs_of(open_source("digits", split="train"), length=50)
    kept, held = hold_out(runs, 120, seed=0)
    assert sum(run.rows for run in held) == 150
    assert not set(map(str, kept)) & set(map(str, held))
    assert len(kept) + len(held) == len(runs)
    assert hold_out(runs, 120, seed=0)[1] == held
    assert hold_out(runs, 120, seed=1)[1] != held
    assert hold_out(runs, 0, seed=0) == (runs, [])


def test_refuses_what_does_not_divide() -> None:
    with pytest.raises(ValueError, match="batch must be a multiple of 8"):
        order(batch=60)
    with pytest.raises(ValueError, match="workers must divide 8"):
        order(workers=3)
    with pytest.raises(ValueError, match="needs more than the 40 rows"):
        order(limit=40)
