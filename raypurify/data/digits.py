"""The 1,797 handwritten digits that scikit-learn carries (UCI's optical recognition of handwritten digits, test part).

Each is 8x8 with values 0 to 16. It is brought to MNIST's form: values to 0..255, enlarged to 20x20 (bicubic), and
centred in 28x28, as MNIST's own digits are 20x20 in 28x28. A fixed shuffle gives 1,500 to training and 297 to testing.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raypurify.data.base import Found, Rows, Shard

TRAINING_ROWS = 1500
SPLIT_SEED = 0
SIDE = 28
INNER_SIDE = 20
CLASSES = 10


def source(split: str) -> Found:
    """The shard of a split."""
    images, labels, order = _all()
    training = split == "train"
    rows = TRAINING_ROWS if training else len(order) - TRAINING_ROWS
    first = 0 if training else TRAINING_ROWS
    content = hashlib.sha256(images.tobytes() + labels.tobytes() + order.tobytes()).hexdigest()
    return Found(
        shards=(Shard(format=__name__, url="digits", key="digits", rows=rows, first=first),),
        image_shape=(SIDE, SIDE, 1),
        classes=CLASSES,
        contents=(content,),
    )


def read(shard: Shard, rows: NDArray[np.int64]) -> Rows:
    """Rows of a split; the number in an id is scikit-learn's."""
    images, labels, order = _all()
    chosen = order[shard.first + rows]
    return Rows(ids=ids(shard, rows), images=images[chosen], labels=labels[chosen], rejects=[])


def ids(shard: Shard, rows: NDArray[np.int64]) -> list[str]:
    """Ids of rows of a split."""
    return [f"digits#{row}" for row in _all()[2][shard.first + rows]]


def labels(shard: Shard, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels of rows of a split."""
    _, every, order = _all()
    return every[order[shard.first + rows]]


@lru_cache(maxsize=1)
def _all() -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    # Its file of them is read, for scikit-learn is slow to import.
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(table)).astype(np.int64)
    images = np.stack([_enlarged(image) for image in table[:, :-1].reshape(-1, 8, 8)])[:, :, :, None]
    return images, table[:, -1].astype(np.int64), order


def _enlarged(image: NDArray[np.float64]) -> NDArray[np.uint8]:
    small = Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8))
    inner = np.asarray(small.resize((INNER_SIDE, INNER_SIDE), Image.Resampling.BICUBIC))
    margin = (SIDE - INNER_SIDE) // 2
    return np.pad(inner, margin)
