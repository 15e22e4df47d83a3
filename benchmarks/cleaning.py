"""Bulk cleaning against a bare loop in one process, through an S3 server, and by two workers against one.

The purifier is a CRU-Net of the default width with random weights; images are random too, in colour, 32x32 in Parquet
on the local disk. The loop reads in threads, purifies on all cores, writes in threads, and keeps no accounts. Start-up
of Ray and of its actors is left out: the clock runs from the first image to the last.
"""

from __future__ import annotations

import io
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import _harness
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

import raypurify
from raypurify import models, storage
from raypurify.storage import checkpoints

ROWS = 500


def purifier(folder: str) -> str:
    """A CRU-Net checkpoint in ``folder`` that changes its images."""
    torch.manual_seed(0)
    spec = models.shaped_for("purifier", "cru_net", (32, 32, 3), classes=0)
    network: Any = models.untrained("purifier", spec)
    torch.nn.init.normal_(network.output.weight, std=0.01)
    url = f"{folder}/cru_net"
    checkpoints.save(url, {"kind": "purifier", "plugin": "cru_net", "params": {"channels": 3}}, network.state_dict())
    return url


def encoded(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(count: int, side: int) -> Iterator[bytes]:
    """Random PNGs."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        yield encoded(generator.integers(0, 256, (side, side, 3), dtype=np.uint8))


def parquet(folder: str, count: int, side: int) -> str:
    """``count`` images in Parquet files of 5,000."""
    os.makedirs(f"{folder}/in")
    images = list(pictures(count, side))
    for number, start in enumerate(range(0, count, 5000)):
        rows = [{"bytes": data, "path": None} for data in images[start : start + 5000]]
        pq.write_table(pa.table({"image": rows}), f"{folder}/in/{number:03d}.parquet", row_group_size=ROWS)
    return f"{folder}/in"


def ours(source: str, network: str, actors: int, output: str, batch: int = 250) -> float:
    """Images a second of a cleaning, by its own ``run.json``."""
    raypurify.clean(input=source, purifier=network, actors=actors, cpus_per_actor=1, batch=batch, output=output)
    return float(storage.read_json(f"{output}/run.json")["attempts"][0]["counts"]["images_per_second"])


def bare_loop(source: str, network: str, output: str) -> float:
    """Images a second of one process: threads read, torch purifies on all cores, threads write."""
    module = models.placed(models.load("purifier", network).build(), "cpu")
    os.makedirs(output)

    def read(part: tuple[str, int]) -> np.ndarray:
        table = pq.ParquetFile(part[0]).read_row_group(part[1])
        return np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()])

    def write(part: tuple[str, int], pixels: np.ndarray) -> None:
        rows = [{"bytes": encoded(image), "path": None} for image in pixels]
        pq.write_table(pa.table({"image": rows}), f"{output}/{Path(part[0]).stem}-{part[1]:03d}.parquet")

    files = sorted(str(path) for path in Path(source).iterdir())
    parts = [(file, group) for file in files for group in range(pq.ParquetFile(file).num_row_groups)]
    count, started = 0, time.perf_counter()
    with ThreadPoolExecutor(2) as readers, ThreadPoolExecutor(2) as writers, torch.no_grad():
        ahead = [readers.submit(read, part) for part in parts[:2]]
        writes = []
        for number, part in enumerate(parts):
            pixels = ahead.pop(0).result()
            if number + 2 < len(parts):
                ahead.append(readers.submit(read, parts[number + 2]))
            x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)
            purified = torch.cat([module(batch) for batch in x.split(250)])
            cleaned = purified.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
            writes.append(writers.submit(write, part, cleaned))
            count += len(pixels)
        for done in writes:
            done.result()
    return count / (time.perf_counter() - started)


@contextmanager
def s3_server() -> Iterator[str]:
    """A bucket on a moto server of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    moto = Path(sys.executable).parent / "moto_server"
    server = subprocess.Popen([moto, "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
    keys = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", **keys})
    while socket.socket().connect_ex(("127.0.0.1", port)):
        time.sleep(0.1)
    storage.filesystem("s3://images")[0].mkdir("images")
    try:
        yield "s3://images"
    finally:
        server.terminate()


def main() -> None:
    """Measure in turns and print the JSON object."""
    parser = _harness.arguments(__doc__)
    parser.add_argument("--turns", type=int, default=3, help="the figures are medians of so many")
    options = parser.parse_args()
    count, small, large, turns = (1000, 100, 16, 1) if options.quick else (20_000, 2000, 340, options.turns)
    results = []
    with tempfile.TemporaryDirectory() as folder, s3_server() as bucket:
        network = purifier(folder)
        source = parquet(folder, count, 32)
        rates: dict[str, list[float]] = {"ours": [], "loop": []}
        for turn in range(turns):
            rates["ours"].append(ours(source, network, 2, f"{folder}/ours-{turn}"))
            rates["loop"].append(bare_loop(source, network, f"{folder}/loop-{turn}"))
        mine, theirs = (statistics.median(values) for values in rates.values())
        results.append(_harness.result("Parquet, 32x32", "images/s", mine, theirs, "bare loop, all cores", count))

        with ThreadPoolExecutor(16) as pool:
            urls = [f"{bucket}/in/{number:05d}.png" for number in range(small)]
            list(pool.map(storage.write_bytes, urls, pictures(small, 32)))
        through_s3 = ours(f"{bucket}/in", network, 2, f"{bucket}/out")
        results.append(_harness.result("PNGs on S3, 32x32", "images/s", through_s3, mine, "ours from Parquet", small))

        os.makedirs(f"{folder}/large")
        for number, data in enumerate(pictures(large, 256)):
            Path(folder, "large", f"{number:04d}.png").write_bytes(data)
        one, two = (
            statistics.median(
                ours(f"{folder}/large", network, actors, f"{folder}/{actors}-{turn}") for turn in range(turns)
            )
            for actors in (1, 2)
        )
        results.append(_harness.result("two workers, 256x256", "images/s", two, one, "one worker", large))
    _harness.report("cleaning", results, packages=("torch", "ray"))


if __name__ == "__main__":
    main()
