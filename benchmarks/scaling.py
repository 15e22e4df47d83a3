"""An evaluation on clusters of 1, 2, 4 and 8 nodes of this machine, whose device is simulated.

Each node declares one resource ``device``, of which an actor takes all. The purifier waits 50 ms for a batch of 32, as
for a device, and computes nothing. So neither cores nor memory are the limit, and what is measured is how the pipeline
feeds many nodes. The figure is the rate of the steady state: after half of the images, and before the last tenth.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path

import _harness
import numpy as np
import ray
from ray.cluster_utils import Cluster
from torch import Tensor, nn

from raypurify import storage
from raypurify.evaluation.grid import EvaluationConfig
from raypurify.jobs.evaluate import evaluate
from raypurify.jobs.resources import ActorPool

NODES = (1, 2, 4, 8)
ROWS = 500
"""Images of a unit of work."""
BATCH = 32
SECONDS = 0.05
"""That the device takes for a batch."""


class Device(nn.Module):
    """A purifier that waits for a device, and gives its images back."""

    differentiable = False
    trivial = True

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(SECONDS)
        return x


def steady_rate(timeline: list[list[float]]) -> float:
    """Images a second between half and nine tenths of the images.

    Args:
        timeline: of ``run.json``: seconds and images done until then.
    """
    seconds, images = np.array(timeline).T
    inner = (images >= 0.5 * images[-1]) & (images <= 0.9 * images[-1])
    return float(np.polyfit(seconds[inner], images[inner], 1)[0])


def rate(nodes: int, units: int, data: str) -> float:
    """Images a second of the steady state on so many nodes, each of which has ``units`` units of work."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 200 << 20})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=2, resources={"device": 1}, object_store_memory=100 << 20)
        ray.init(cluster.address, logging_level=logging.ERROR)
        config = EvaluationConfig(
            data=data,
            split="train",
            limit=nodes * units * ROWS,
            classifiers=("weights/mnist/a_net",),
            purifiers=("scaling:Device",),
            attacks=("none",),
        )
        pool = ActorPool(actors=nodes, batch=BATCH, actor_resources=("device=1",))
        with tempfile.TemporaryDirectory() as folder:
            evaluate(config, pool, f"{folder}/run")
            run = storage.read_json(f"{folder}/run/run.json")
        return steady_rate(run["attempts"][0]["counts"]["timeline"])
    finally:
        ray.shutdown()
        cluster.shutdown()


def main() -> None:
    """Measure, and print the JSON object."""
    parser = _harness.arguments(__doc__)
    parser.add_argument("--data", default="mnist", help="dataset of 28x28 grey images, 60,000 to train on")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    nodes, units = (NODES[:2], 10) if options.quick else (NODES, 15)
    rates = {count: rate(count, units, options.data) for count in nodes}
    results = [
        _harness.result(f"{count} nodes", "images/s", rates[count], rates[1], "one node", count * units * ROWS)
        for count in nodes[1:]
    ]
    _harness.report("scaling", results, packages=("torch", "ray"))


if __name__ == "__main__":
    main()
