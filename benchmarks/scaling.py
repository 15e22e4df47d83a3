"""An evaluation on clusters of nodes of this machine, whose devices are simulated: they wait, and compute nothing.

One row for each number of nodes: a node declares one ``device``, of which an actor takes all, and which the purifier
holds for 50 ms a batch of 32. One row for stages apart, on four nodes: two have the ``device`` that the slow purifier
needs, and two an ``attacker``, which holds a batch for 100 ms. The fused form has to run where the purifier can; with
``--stages apart`` the other nodes attack. (Where every node can do everything, stages apart gain nothing.)

Images of 8x8 and a classifier of one layer leave the cores to the pipeline: what is measured is how it feeds the nodes.
The figure is the rate of the steady state: after half of the images, and before the last tenth.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace

import _harness
import numpy as np
import ray
from ray.cluster_utils import Cluster
from torch import Tensor, nn

from raypurify import storage
from raypurify.attacks import Attacked, counted
from raypurify.data import Found, Rows, Shard
from raypurify.evaluation.grid import EvaluationConfig
from raypurify.jobs.evaluate import evaluate
from raypurify.jobs.resources import ActorPool, StagePools

NODES = (1, 2, 4, 8)
ROWS = 500
"""Images of a unit of work."""
BATCH = 32
SECONDS = 0.05
"""That a device takes for a batch. The purifier has two of each batch: the clean one and the attacked one."""


class Device(nn.Module):
    """A purifier that waits for a device, and gives its images back."""

    differentiable = False
    trivial = True

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(SECONDS)
        return x


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """An attack that waits for a device as long as the purifier does for its two batches, and gives its images back."""

    norm = "l2"

    def __call__(self, victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Sequence[int], target: object) -> Attacked:
        time.sleep(2 * SECONDS)
        return counted(x, steps=1, queries=1)


class Linear(nn.Module):
    """A classifier of one layer, the same in every process."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)
        nn.init.constant_(self.head.weight, 0.1)
        nn.init.constant_(self.head.bias, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def images(split: str, rows: int = 8_000) -> Found:
    """A dataset of grey images of 8x8, which this module makes."""
    shard = Shard(format=__name__, url="images", key=f"images-{split}", rows=rows, extra={})
    return Found(shards=(shard,), image_shape=(8, 8, 1), classes=10, contents=("images",))


def read(shard: Shard, rows: np.ndarray) -> Rows:
    """Rows of the dataset."""
    ids = [f"{shard.key}#{row}" for row in shard.first + rows]
    return Rows(ids=ids, images=np.full((len(rows), 8, 8, 1), 128, np.uint8), labels=labels(shard, rows), rejects=[])


def labels(shard: Shard, rows: np.ndarray) -> np.ndarray:
    """Labels of rows of the dataset."""
    return (shard.first + rows) % 10


def steady_rate(timeline: list[list[float]]) -> float:
    """Images a second between half and nine tenths of the images.

    Args:
        timeline: of ``run.json``: seconds and images done until then.
    """
    seconds, done = np.array(timeline).T
    inner = (done >= 0.5 * done[-1]) & (done <= 0.9 * done[-1])
    return float(np.polyfit(seconds[inner], done[inner], 1)[0])


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster whose head does no work, and which this process has joined."""
    head = {"num_cpus": 0, "object_store_memory": 100 << 20, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(started.address, logging_level=logging.ERROR)
        yield started
    finally:
        ray.shutdown()
        started.shutdown()


def add_nodes(started: Cluster, count: int, resource: str) -> None:
    """Add nodes of two CPUs that declare one of a resource."""
    for _ in range(count):
        started.add_node(num_cpus=2, resources={resource: 1}, object_store_memory=80 << 20)


def rate(units: int, attack: str, pool: ActorPool, pools: Mapping[str, ActorPool]) -> float:
    """Images a second of the steady state.

    Args:
        units: how many units of work there are.
        attack: its name.
        pool, pools: see :func:`raypurify.jobs.evaluate.evaluate`.
    """
    config = EvaluationConfig(
        data=f"scaling:images,rows={units * ROWS}",
        classifiers=("scaling:Linear",),
        purifiers=("scaling:Device",),
        attacks=(attack,),
    )
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(None):
        evaluate(config, pool, f"{folder}/run", pools=pools)
        run = storage.read_json(f"{folder}/run/run.json")
    return steady_rate(run["attempts"][0]["counts"]["timeline"])


def pools_of_stages() -> tuple[ActorPool, Mapping[str, ActorPool]]:
    """Who classifies, and two nodes each that attack and that purify."""
    pools = StagePools(
        stages="apart",
        attack_actors=2,
        attack_resources=("attacker=1",),
        purify_actors=2,
        purify_resources=("device=1",),
    )
    pool = ActorPool(actors=1, batch=BATCH)
    return pool, pools.apart(pool)


def main() -> None:
    """Measure, and print the JSON object."""
    parser = _harness.arguments(__doc__)
    parser.add_argument("--units", type=int, default=16, help=f"units of {ROWS} images that each node has to do")
    options = parser.parse_args()
    _harness.share_modules()
    numbers, units = (NODES[:2], 4) if options.quick else (NODES, options.units)
    rates: dict[int, float] = {}
    with cluster() as started:
        for nodes in numbers:
            add_nodes(started, nodes - len(started.worker_nodes), "device")
            pool = ActorPool(actors=nodes, batch=BATCH, actor_resources=("device=1",))
            rates[nodes] = rate(nodes * units, "none", pool, {})
        add_nodes(started, 2, "attacker")
        both = replace(pool, actors=2)
        fused = rate(2 * units, "scaling:Attacker", both, {})
        apart = rate(4 * units, "scaling:Attacker", *pools_of_stages())
    results = [
        _harness.result(f"{nodes} nodes", "images/s", rates[nodes], rates[1], "one node", nodes * units * ROWS)
        for nodes in numbers[1:]
    ]
    results.append(_harness.result("stages apart", "images/s", apart, fused, "stages fused", 4 * units * ROWS))
    _harness.report("scaling", results, packages=("torch", "ray"))


if __name__ == "__main__":
    main()
