"""IDX files, as MNIST's authors publish them (http://yann.lecun.com/exdb/mnist/): gzipped or not.

A file is two zero bytes, the type of its values (0x08: unsigned byte), the number of dimensions, each dimension as a
big-endian 32-bit integer, then the values. Images have the dimensions (N, H, W), or (N, H, W, C) with C of 1 or 3.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from raypurify import storage
from raypurify.data import files
from raypurify.data.base import DataError, Found, Rows, Shard, check_labels, numbered
from raypurify.data.files import File, Place

RANK = 1
EXPECTED = "MNIST's IDX files (train-images-idx3-ubyte, ..., gzipped or not)"
PREFIX = {"train": "train", "test": "t10k"}
UNSIGNED_BYTE = 0x08
TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
MNIST_CLASSES = 10


def names(split: str) -> tuple[str, str]:
    """Names of the file of images and of the file of labels, without ``.gz``."""
    return f"{PREFIX[split]}-images-idx3-ubyte", f"{PREFIX[split]}-labels-idx1-ubyte"


def find(place: Place, split: str) -> Found | None:
    """The shard that a folder's IDX files make up, or a file of images or labels and the others beside it.

    The number of classes is the place's; or else ten, as in MNIST and its kin, or what the labels reach to.

    Raises:
        DataError: a file is missing, truncated, of a wrong magic number or type, or the counts differ.
    """
    listed = place.files if place.is_folder else _beside(place.files[0], split)
    by_key = {file.key.replace(".idx", "-idx"): file for file in reversed(listed)}
    image_name, label_name = names(split)
    images, labels = by_key.get(image_name), by_key.get(label_name)
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        present, missing = (label_name, image_name) if images is None else (image_name, label_name)
        raise DataError(f"{by_key[present].url}: beside it, {missing} (or {missing}.gz) is missing")
    image_dims, label_dims = dimensions(images), dimensions(labels)
    if len(image_dims) not in (3, 4) or (len(image_dims) == 4 and image_dims[3] not in (1, 3)):
        raise DataError(f"{images.url}: expected dimensions (N, H, W) or (N, H, W, 1 or 3), got {image_dims}")
    if len(label_dims) != 1:
        raise DataError(f"{labels.url}: expected one dimension, got {label_dims}")
    if image_dims[0] != label_dims[0]:
        raise DataError(
            f"{labels.url}: holds {label_dims[0]} labels, but {images.url} holds {image_dims[0]} images; "
            "they must be of one dataset and split"
        )
    values = _values(labels.url, labels.version, label_dims, np.arange(label_dims[0]))[:, 0]
    count = place.classes or max(MNIST_CLASSES, int(values.max(initial=0)) + 1)
    check_labels(values, count, rows=np.arange(len(values)), url=labels.url)
    height, width, channels = (*image_dims[1:], 1)[:3]
    shard = Shard(
        format=__name__,
        url=images.url,
        key=image_name,
        rows=image_dims[0],
        extra={
            "version": images.version,
            "dimensions": image_dims,
            "labels": labels.url,
            "labels_version": labels.version,
            "classes": count,
        },
    )
    contents = (files.content_identity(images), files.content_identity(labels))
    return Found(shards=(shard,), image_shape=(height, width, channels), classes=count, contents=contents)


def _beside(file: File, split: str) -> list[File]:
    """The files of a split in the folder of one of them, or of another split's."""
    if not any(file.key in names(each) for each in PREFIX):
        return []
    folder = file.url.rpartition("/")[0]
    found = (files.stat(storage.join(folder, key + end)) for key in names(split) for end in ("", ".gz"))
    return [each for each in found if each]


def dimensions(file: File) -> tuple[int, ...]:
    """The dimensions in a file's header, once the header and the file's size are found right.

    Raises:
        DataError: a wrong magic number, values that are not unsigned bytes, or a size that does not fit.
    """
    head = _head(file)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in TYPES or head[3] == 0:
        raise DataError(
            f"{file.url}: wrong magic number at offset 0: expected 0000 08 and the number of dimensions, "
            f"got {head[:4].hex() or 'an empty file'}; this is no IDX file"
        )
    if head[2] != UNSIGNED_BYTE:
        raise DataError(f"{file.url}: wrong type at offset 2: expected 0x08 (uint8), got {TYPES[head[2]]}")
    count = head[3]
    if len(head) < 4 + 4 * count:
        raise DataError(f"{file.url}: truncated: the header ends at offset {len(head)} of {4 + 4 * count}")
    dims = tuple(int(value) for value in np.frombuffer(head, ">u4", count=count, offset=4))
    _check_size(file, 4 + 4 * count + math.prod(dims))
    return dims


def _head(file: File) -> bytes:
    longest = 4 + 4 * 255
    if not file.name.endswith(".gz"):
        return files.read_range(file.url, 0, min(longest, file.size))
    with files.inflating(file.url, lambda: 0) as stream:
        return stream.read(longest)


def _check_size(file: File, expected: int) -> None:
    size = file.size
    if file.name.endswith(".gz"):
        # A trailer that does not fit is a file cut off, or one of several members: inflating tells.
        if files.inflated_size(file) == expected % 2**32:
            return
        inflated = files.stat(files.inflated(file.url, file.version))
        size = inflated.size if inflated else 0
    if size != expected:
        what = "truncated" if size < expected else "too long"
        raise DataError(f"{file.url}: {what}: its header asks for {expected} bytes, it ends at offset {size}")


def _values(url: str, version: str, dims: tuple[int, ...], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    path = files.inflated(url, version) if url.endswith(".gz") else url
    return files.read_records(path, 4 + 4 * len(dims), math.prod(dims[1:]), rows)


def read(shard: Shard, rows: NDArray[np.int64]) -> Rows:
    """Some rows of a shard, by their offsets."""
    dims = tuple(shard.extra["dimensions"])
    pixels = _values(shard.url, shard.extra["version"], dims, rows)
    return Rows(
        ids=ids(shard, rows),
        images=pixels.reshape(len(rows), *(*dims[1:], 1)[:3]),
        labels=labels(shard, rows),
        rejects=[],
    )


ids = numbered


def labels(shard: Shard, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels of some rows, by their offsets."""
    extra = shard.extra
    values = _values(extra["labels"], extra["labels_version"], tuple(extra["dimensions"])[:1], rows)[:, 0]
    return check_labels(values, extra["classes"], rows=rows, url=extra["labels"])
