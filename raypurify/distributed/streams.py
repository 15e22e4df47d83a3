"""Ray Data streams of image batches, in an order that depends on the seed and the epoch alone.

The rows of an epoch are permuted in short runs and dealt to a fixed number of lanes. A global batch takes an equal part
from each lane, and a worker reads the lanes that are its own. So what a step sees does not depend on the number of
workers, no image is read twice, and an epoch can be entered again after a crash without what came before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset, Datasource, ReadTask
from ray.data.block import Block, BlockMetadata

from raypurify.data import Rows, Shard, Source, read_rows
from raypurify.seeds import seed_of

LANES = 8
"""Lanes of a global batch: the numbers of workers that divide it can share a training run."""
RUN = 128
"""Rows that stay together when an epoch is permuted: the unit of reading."""
WINDOW = 512
"""Rows of a lane that are mixed with each other."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Rows ``start`` to ``stop`` of a shard."""

    shard: Shard
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


def runs_of(source: Source, first: int = 0, last: int | None = None, length: int = RUN) -> list[Run]:
    """The dataset's rows from ``first`` to ``last``, cut into runs of at most ``length`` rows, in order."""
    last = source.rows if last is None else last
    runs, begin = [], 0
    for shard in source.shards:
        low, high = max(first - begin, 0), min(last - begin, shard.rows)
        runs += [Run(shard=shard, start=start, stop=min(start + length, high)) for start in range(low, high, length)]
        begin += shard.rows
    return runs


def hold_out(runs: Sequence[Run], rows: int, seed: int) -> tuple[list[Run], list[Run]]:
    """Split off runs, picked by the seed, that hold at least ``rows`` rows: (the others, those)."""
    held: set[int] = set()
    count = 0
    for index in np.random.default_rng(seed_of(seed, "validation")).permutation(len(runs)):
        if count < rows:
            held.add(index)
            count += runs[index].rows
    kept = [run for index, run in enumerate(runs) if index not in held]
    return kept, [runs[index] for index in sorted(held)]


@dataclass(frozen=True, kw_only=True)
class EpochOrder:
    """How the rows of each epoch are ordered and shared out."""

    runs: tuple[Run, ...]
    seed: int
    batch: int
    """Images in a global batch; a multiple of LANES."""
    rank: int = 0
    workers: int = 1
    """Workers, of which this is number ``rank``; a divisor of LANES."""

    def __post_init__(self) -> None:
        if self.batch % LANES:
            raise ValueError(f"batch must be a multiple of {LANES}; got {self.batch!r}")
        if LANES % self.workers:
            raise ValueError(f"the number of workers must divide {LANES} (1, 2, 4 or 8); got {self.workers!r}")
        if self.steps < 1:
            raise ValueError(f"a batch of {self.batch} needs more than the {self.rows} rows of the training data")

    @property
    def rows(self) -> int:
        return sum(run.rows for run in self.runs)

    @property
    def part(self) -> int:
        """Images that a lane gives to a global batch."""
        return self.batch // LANES

    @property
    def steps(self) -> int:
        """Global batches of an epoch; the rows that fill no batch are left out, others each time."""
        return self.rows // LANES // self.part

    def windows(self, epoch: int) -> Iterator[list[list[Run]]]:
        """For each window of the epoch, in order: the runs of this worker's lanes, cut to the window's rows."""
        generator = np.random.default_rng(seed_of(self.seed, "order", epoch))
        permuted = [self.runs[index] for index in generator.permutation(len(self.runs))]
        lane_rows = self.steps * self.part
        whole = WINDOW // self.part * self.part or self.part
        mine = range(self.rank * LANES // self.workers, (self.rank + 1) * LANES // self.workers)
        starts = np.concatenate([[0], np.cumsum([run.rows for run in permuted])])
        for begin in range(0, lane_rows, whole):
            end = min(begin + whole, lane_rows)
            yield [_cut(permuted, starts, lane * lane_rows + begin, lane * lane_rows + end) for lane in mine]


def _cut(runs: Sequence[Run], starts: np.ndarray, first: int, last: int) -> list[Run]:
    """Rows ``first`` to ``last`` of the runs laid end to end."""
    low = int(np.searchsorted(starts, first, side="right")) - 1
    high = int(np.searchsorted(starts, last, side="left"))
    pieces = []
    for index in range(low, high):
        run, begin = runs[index], int(starts[index])
        start = run.start + max(first - begin, 0)
        stop = run.start + min(last - begin, run.rows)
        pieces.append(Run(shard=run.shard, start=start, stop=stop))
    return pieces


def read_strict(run: Run) -> Rows:
    """Read a run of training rows.

    Raises:
        ValueError: an image that cannot be decoded; the message names it.
    """
    rows = read_rows(run.shard, run.start, run.stop)
    if rows.rejects:
        bad = rows.rejects[0]
        raise ValueError(f"{bad['url']}, {bad['id']}: cannot train on this image: {bad['reason']}")
    return rows


def training_block(lanes: Sequence[Sequence[Run]], part: int, seed: int, epoch: int) -> pa.Table:
    """Read one window, mix each lane, and lay the rows out batch by batch, lane by lane.

    Returns:
        A table of ``image`` (H, W, C) uint8, ``label`` int64 and ``seed`` int64.
    """
    images, labels, seeds = [], [], []
    for lane in lanes:
        rows = [read_strict(run) for run in lane]
        ids = [name for piece in rows for name in piece.ids]
        mix = np.random.default_rng(seed_of(seed, "mix", epoch, ids[0])).permutation(len(ids))
        images.append(_one_shape(rows)[mix])
        labels.append(np.concatenate([piece.labels for piece in rows])[mix])
        seeds.append(np.array([seed_of(seed, "image", epoch, name) for name in ids], dtype=np.int64)[mix])
    return table_of(image=_interleave(images, part), label=_interleave(labels, part), seed=_interleave(seeds, part))


def _one_shape(rows: Sequence[Rows]) -> np.ndarray:
    shapes = {image.shape for piece in rows for image in piece.images}
    if len(shapes) != 1:
        raise ValueError(f"training needs images of one shape; got {', '.join(map(str, sorted(shapes)))}")
    return np.concatenate([np.asarray(piece.images) for piece in rows])


def _interleave(lanes: Sequence[np.ndarray], part: int) -> np.ndarray:
    """Lanes of (rows, ...) to batches that hold ``part`` rows of each lane in turn."""
    cut = np.stack([lane.reshape(-1, part, *lane.shape[1:]) for lane in lanes], axis=1)
    return cut.reshape(-1, *cut.shape[3:])


def table_of(**columns: np.ndarray) -> pa.Table:
    """An Arrow table of numpy columns; (N, H, W, C) arrays become fixed-shape tensors."""
    arrays = {}
    for name, values in columns.items():
        tensor = values.ndim > 1
        arrays[name] = (
            pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values)) if tensor else pa.array(values)
        )
    return pa.table(arrays)


class BlockReader(Datasource):
    """A Ray Data source in which each read task makes exactly one block."""

    def __init__(self, tasks: Sequence[tuple[object, ...]], read: object, name: str, row_bytes: int) -> None:
        super().__init__()
        self._tasks, self._read, self._name, self._row_bytes = tasks, read, name, row_bytes

    def get_name(self) -> str:
        return self._name

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism, per_task_row_limit=None, data_context=None):  # type: ignore[no-untyped-def]
        metadata = BlockMetadata(num_rows=None, size_bytes=self._row_bytes, exec_stats=None, input_files=None)
        return [ReadTask(_ReadOne(self._read, task), metadata) for task in self._tasks]


class _ReadOne:
    def __init__(self, read, task) -> None:  # type: ignore[no-untyped-def]
        self.read, self.task = read, task

    def __call__(self) -> list[Block]:
        return [self.read(*self.task)]


def training_stream(order: EpochOrder, epochs: Sequence[int], read_cpus: float) -> Dataset:
    """This worker's part of the global batches of ``epochs``, one after the other.

    Iterated in batches of ``order.batch / order.workers`` rows, batch k of the stream is step k.
    """
    tasks = [(lanes, order.part, order.seed, epoch) for epoch in epochs for lanes in order.windows(epoch)]
    return read_blocks(tasks, training_block, name="Images", read_cpus=read_cpus, ordered=True)


def read_blocks(tasks, read, *, name: str, read_cpus: float, ordered: bool) -> Dataset:  # type: ignore[no-untyped-def]
    """A dataset of one block for each task: ``read(*task) -> pa.Table``.

    With ``read_cpus`` of 0 the tasks wait for no CPU, so that actors may take all; then two run at a time.
    """
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = ordered
    context.target_max_block_size = None
    context.enable_progress_bars = False
    with ray.data.DataContext.current(context):
        return ray.data.read_datasource(
            BlockReader(tasks, read, name, 4 << 20),
            num_cpus=read_cpus,
            concurrency=None if read_cpus else min(2, len(tasks)) or None,
            override_num_blocks=len(tasks),
        )
