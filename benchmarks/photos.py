"""Photographs: evaluation, training and cleaning against bare loops, in images and in megapixels a second.

The classifier is EfficientNet-Lite0 (the extra ``photos``), the purifier the one for photographs that comes with the
project. ``--data`` names labelled photographs in Parquet, of ImageNet's classes. The evaluation is of three attacks and
four purifiers, and its baseline the better of one process and of a process a core. The training is of a CRU-Net against
attacks made as it goes. The cleaning takes photographs at their own size. Start-up of Ray and its actors is left out.
"""

from __future__ import annotations

import io
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _harness
import cleaning
import numpy as np
import pipeline
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import training
from PIL import Image

import raypurify
from raypurify import models, storage
from raypurify.data import BATCH_PIXELS, View, batch_size
from raypurify.evaluation.grid import EvaluationConfig
from raypurify.training.config import TrainingConfig

SIDE = 224
EPSILON = 4 / 255
NETWORK = "weights/photos/cru_net"
ROWS = 25
"""Photographs of a row group of what is cleaned."""


def evaluation(data: str, limit: int) -> EvaluationConfig:
    """Three attacks and four purifiers on some photographs."""
    return EvaluationConfig(
        data=data,
        limit=limit,
        view=View(crop=SIDE),
        classifiers=("efficientnet_lite0",),
        purifiers=(NETWORK, "jpeg", "median_filter", "total_variation"),
        attacks=tuple(f"{name},epsilon={EPSILON}{more}" for name, more in ATTACKS),
    )


ATTACKS = (("fgsm", ""), ("r_fgsm", ""), ("pgd", ",steps=20"))


def trained(data: str, limit: int) -> TrainingConfig:
    """A CRU-Net trained on squares of photographs."""
    return TrainingConfig(
        data=data,
        view=View(crop=SIDE),
        model="cru_net,width=16,levels=4,blocks=1",
        classifier="efficientnet_lite0",
        attacks=(f"fgsm,epsilon={EPSILON}", f"pgd,epsilon={EPSILON},steps=3"),
        pixel_weight=100.0,
        logit_weight=1.0,
        epochs=2,
        batch=16,
        limit=limit,
        validation=0,
        precision="bfloat16",
    )


def corpus(data: str, folder: str, count: int) -> str:
    """Some photographs of a dataset, in Parquet as they are stored, in small row groups."""
    os.makedirs(folder)
    urls = storage.list_files(data, ".parquet")
    encoded = [row["bytes"] for url in urls for row in storage.read_table(url)["image"].to_pylist()][:count]
    rows = pa.table({"image": [{"bytes": image, "path": None} for image in encoded]})
    pq.write_table(rows, f"{folder}/photographs.parquet", row_group_size=ROWS)
    return folder


def ours(source: str, output: str, actors: int) -> tuple[float, float]:
    """Images a second of ``raypurify clean``, no flag but input and output, and the share of reading and decoding."""
    raypurify.clean(input=source, output=output, actors=actors)
    counts = storage.read_json(f"{output}/run.json")["attempts"][0]["counts"]
    spent = {name: seconds for name, seconds in counts.items() if name.startswith("seconds_")}
    return float(counts["images_per_second"]), spent["seconds_read"] / sum(spent.values())


def bare_loop(source: str, output: str) -> float:
    """Images a second of one process: threads read and decode, torch purifies on all cores, threads write."""
    network = models.placed(models.load("purifier", NETWORK).build(), "cpu")
    os.makedirs(output)
    [file] = [pq.ParquetFile(path) for path in Path(source).iterdir()]

    def write(group: int, cleaned: list[np.ndarray]) -> None:
        rows = [{"bytes": cleaning.encoded(image), "path": None} for image in cleaned]
        pq.write_table(pa.table({"image": rows}), f"{output}/{group:03d}.parquet")

    count, started = 0, time.perf_counter()
    with ThreadPoolExecutor(2) as readers, ThreadPoolExecutor(2) as writers, torch.no_grad():
        ahead = [readers.submit(_decoded, file, group) for group in range(file.num_row_groups)]
        writes = []
        for group, images in enumerate(future.result() for future in ahead):
            writes.append(writers.submit(write, group, list(_purified(network, images))))
            count += len(images)
        for done in writes:
            done.result()
    return count / (time.perf_counter() - started)


def _decoded(file: pq.ParquetFile, group: int) -> list[np.ndarray]:
    encoded = file.read_row_group(group)["image"].to_pylist()
    return [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in encoded]


def _purified(network: Any, images: list[np.ndarray]) -> Iterator[np.ndarray]:
    """The images purified, those of one shape together."""
    alike = defaultdict(list)
    for image in images:
        alike[image.shape].append(image)
    for shape, same in alike.items():
        size = batch_size(len(same), BATCH_PIXELS, shape)
        for start in range(0, len(same), size):
            x = torch.from_numpy(np.stack(same[start : start + size])).permute(0, 3, 1, 2).float().div(255)
            x = x.contiguous(memory_format=torch.channels_last)
            yield from network(x).mul(255).round().byte().permute(0, 2, 3, 1).numpy()


def pixels(source: str) -> float:
    """Megapixels of an image, in the mean."""
    [file] = [pq.ParquetFile(path) for path in Path(source).iterdir()]
    images = [image for group in range(file.num_row_groups) for image in _decoded(file, group)]
    return float(np.mean([image.shape[0] * image.shape[1] for image in images])) / 1e6


def main() -> None:
    """Measure in turns and print the JSON object."""
    parser = _harness.arguments(__doc__)
    parser.add_argument("--data", required=True, help="labelled photographs in Parquet, of ImageNet's classes")
    parser.add_argument("--only", nargs="*", default=["evaluation", "training", "cleaning"], help="what is measured")
    parser.add_argument("--turns", type=int, default=1, help="the figures are medians of so many")
    options = parser.parse_args()
    evaluated, learned, cleaned = (16, 32, 50) if options.quick else (32, 64, 900)
    cores, results = len(os.sched_getaffinity(0)), []
    square = SIDE * SIDE / 1e6

    def add(name: str, ratio_of: list[tuple[float, float]], baseline: str, n: int, megapixels: float) -> None:
        ours, bare = (statistics.median(rates) for rates in zip(*ratio_of, strict=True))
        more = {"turns": len(ratio_of), "megapixels_per_second": round(ours * megapixels, 3)}
        results.append(_harness.result(name, "images/s", ours, bare, baseline, n, **more))

    if "evaluation" in options.only:
        config = evaluation(options.data, evaluated)
        turned = [
            (
                pipeline.pipeline(config, cores),
                max(pipeline.one_process(config, cores), pipeline.process_per_core(config, cores)),
            )
            for _ in range(options.turns)
        ]
        add("evaluation, 3 attacks x 4 purifiers", turned, "the better bare loop", evaluated, square)
    if "training" in options.only:
        job = trained(options.data, learned)
        turned = [(training.ray_train(job), training.bare_loop(job)) for _ in range(options.turns)]
        add("training, batch 16", turned, "bare torch loop", learned, square)
    if "cleaning" in options.only:
        with tempfile.TemporaryDirectory() as folder:
            source = corpus(options.data, f"{folder}/in", cleaned)
            turned, shares = [], []
            for turn in range(options.turns):
                rate, share = ours(source, f"{folder}/ours-{turn}", cores)
                turned.append((rate, bare_loop(source, f"{folder}/bare-{turn}")))
                shares.append(share)
            add("cleaning, at their own size", turned, "bare torch loop", cleaned, pixels(source))
            results[-1]["share_of_reading_and_decoding"] = round(statistics.median(shares), 4)
    _harness.report("photos", results, packages=("torch", "ray"))


if __name__ == "__main__":
    main()
