"""Parquet of images: the layout of Hugging Face's datasets, and our own.

The image is in the column ``image`` or ``img``:

- ``struct<bytes: binary, ...>`` (Hugging Face) or ``binary``: an encoded image;
- ``arrow.fixed_shape_tensor`` of uint8, (H, W) or (H, W, C);
- a list of uint8, row-major, with its shape [H, W] or [H, W, C] in the column ``shape``.

``label`` (or ``labels``, ``fine_label``) is an integer, and may be missing. ``id`` is a string; where it is missing, a
row is named by its file and its number in it. A shard is one row group.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypurify import images, storage
from raypurify.data import files
from raypurify.data.base import NO_LABEL, DataError, Found, Rows, Shard, check_labels, in_split, stacked
from raypurify.data.files import File

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
BATCH = 1024


def find(listed: list[tuple[str, File]], split: str | None = None) -> Found:
    """One shard for each row group of Parquet files, from their footers alone.

    Args:
        listed: key and file, for each.
        split: take the rows that the hash of their ids puts into this split; without ids, of the file's size and their
            number in it. None: all are of the split.

    Raises:
        DataError: a file is no Parquet, lacks an image column, or differs from the others in its columns.
    """
    shards: list[Shard] = []
    schemas: dict[str, pa.Schema] = {}
    count = 0
    for key, file in listed:
        with _naming(file.url):
            metadata = _metadata(file.url, file.version)
            schema = schemas[file.url] = metadata.schema.to_arrow_schema()
        label = _label_column(schema)
        if label != _label_column(next(iter(schemas.values()))):
            raise DataError(f"{file.url}: its label column ({label}) is not that of {listed[0][1].url}")
        _check_columns(file.url, schema)
        if label is not None:
            count = max(count, _classes_reached(file, metadata, label))
        shards += _row_groups(key, file, metadata)
    if not shards:
        raise DataError(f"{listed[0][1].url}: there are no rows in it")
    if label is not None and not count:
        raise DataError(f"{listed[0][1].url}: all labels are negative; leave {label!r} out for images without labels")
    schema = next(iter(schemas.values()))
    names = _class_names(schema)
    classes: tuple[str, ...] | int = names or count
    number = len(names) or count
    shards = [replace(shard, extra={**shard.extra, "classes": number}) for shard in shards]
    if split is not None:
        shards = list(_of_split(shards, split, {file.url: file.size for _, file in listed}))
    if not shards:
        raise DataError(f"{listed[0][1].url}: none of its few rows falls into the {split} split")
    return Found(
        shards=tuple(shards),
        image_shape=_tensor_shape(schema),
        classes=classes,
        contents=tuple(files.content_identity(file) for _, file in listed),
        split_by="files" if split is None else "ids",
    )


def read(shard: Shard, rows: NDArray[np.int64]) -> Rows:
    """Some rows of a row group; only the needed columns are read.

    Raises:
        DataError: the file is damaged, a label is missing or out of range.
    """
    return next(read_parts(shard, [rows]))


def read_parts(shard: Shard, parts: Sequence[NDArray[np.int64]]) -> Iterator[Rows]:
    """Several lists of rows of a row group, one after the other: it is read once, and each list decoded in its turn.

    Raises:
        DataError: the file is damaged, a label is missing or out of range.
    """
    wanted = np.unique(np.concatenate(parts))
    table = _read_table(shard, wanted)
    for rows in parts:
        part = table if np.array_equal(rows, wanted) else table.take(np.searchsorted(wanted, rows))
        yield _decoded(part, rows, shard)


def _decoded(table: pa.Table, rows: NDArray[np.int64], shard: Shard) -> Rows:
    ids = table["id"].to_pylist() if "id" in table.column_names else _named_by_row(shard, rows)
    decoded, rejects = _images(table, ids, shard)
    kept = [row for row, image in enumerate(decoded) if image is not None]
    return Rows(
        ids=[ids[row] for row in kept],
        images=stacked([image for image in decoded if image is not None]),
        labels=_labels(table, shard, rows)[kept],
        rejects=rejects,
        kept=np.array(kept, np.int64),
    )


def _named_by_row(shard: Shard, rows: Iterable[int]) -> list[str]:
    return [f"{shard.key}#{shard.first + row}" for row in rows]


def labels(shard: Shard) -> NDArray[np.int64]:
    """Labels of a row group, from that column alone.

    Raises:
        DataError: a label is missing or out of range.
    """
    count = _metadata(shard.url, shard.extra["version"]).row_group(shard.row_group).num_rows
    column = _column(shard, _label_column)
    table = pa.table({"image": pa.nulls(count)} if column is None else {LABEL_COLUMNS[0]: column})
    return _labels(table, shard, np.arange(count))


def own_ids(shard: Shard) -> pa.ChunkedArray | None:
    """The column ``id`` of a row group, where there is one."""
    return _column(shard, lambda schema: "id" if "id" in schema.names else None)


def _column(shard: Shard, choose: Callable[[pa.Schema], str | None]) -> pa.ChunkedArray | None:
    metadata = _metadata(shard.url, shard.extra["version"])
    name = choose(metadata.schema.to_arrow_schema())
    if name is None:
        return None
    whole = _whole_column(shard.url, shard.extra["version"], name)
    return whole.slice(shard.first, metadata.row_group(shard.row_group).num_rows)


@lru_cache(maxsize=32)
def _whole_column(url: str, version: str, name: str) -> pa.ChunkedArray:
    with _naming(url), files.open_file(url) as opened:
        return pq.ParquetFile(opened, metadata=_metadata(url, version)).read(columns=[name])[name]


def _of_split(shards: Iterable[Shard], split: str, sizes: Mapping[str, int]) -> Iterator[Shard]:
    for shard in shards:
        own = own_ids(shard)
        # By the file's size in the place of its name: a file that is renamed keeps its split.
        numbers = range(shard.first, shard.first + shard.rows)
        ids = [f"{sizes[shard.url]}#{row}" for row in numbers] if own is None else own.to_pylist()
        picked = np.flatnonzero([in_split(str(name), split) for name in ids]).astype(np.uint32)
        if len(picked):
            yield replace(shard, rows=len(picked), picked=picked)


@lru_cache(maxsize=64)
def _metadata(url: str, version: str) -> pq.FileMetaData:
    # The version keeps the footer of a file that was written anew apart from the old one.
    with files.open_file(url) as file:
        return pq.ParquetFile(file).metadata


@contextmanager
def _naming(url: str) -> Iterator[None]:
    try:
        with files.naming(url):
            yield
    except pa.ArrowException as error:
        raise DataError(f"{url}: cannot be read: {error}") from error


def _row_groups(key: str, file: File, metadata: pq.FileMetaData) -> list[Shard]:
    shards, first = [], 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if rows:
            extra = {"version": file.version}
            shards.append(
                Shard(format="parquet", url=file.url, key=key, rows=rows, first=first, row_group=group, extra=extra)
            )
        first += rows
    return shards


def image_column(schema: pa.Schema) -> str | None:
    return next((name for name in IMAGE_COLUMNS if name in schema.names), None)


def _label_column(schema: pa.Schema) -> str | None:
    return next((name for name in LABEL_COLUMNS if name in schema.names), None)


def _is_encoded(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_encoded(kind.field(index).type)
    if pa.types.is_dictionary(kind):
        return _is_encoded(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_bytes_list(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and kind.value_type == pa.uint8())


def _check_columns(url: str, schema: pa.Schema) -> None:
    _check_image_column(url, schema)
    label = _label_column(schema)
    if label is not None and not pa.types.is_integer(schema.field(label).type):
        raise DataError(f"{url}: column {label!r}: expected integers, got {schema.field(label).type}")
    if "id" in schema.names and not _is_text(schema.field("id").type):
        raise DataError(f"{url}: column 'id': expected strings, got {schema.field('id').type}")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _check_image_column(url: str, schema: pa.Schema) -> None:
    name = image_column(schema)
    if name is None:
        raise DataError(f"{url}: expected a column 'image' or 'img', got the columns {schema.names}")
    kind = schema.field(name).type
    if isinstance(kind, pa.FixedShapeTensorType):
        sides = _sides(kind)
        if kind.value_type != pa.uint8() or len(sides) not in (2, 3) or (*sides, 1)[2] not in (1, 3):
            raise DataError(f"{url}: column {name!r}: expected a tensor (H, W) or (H, W, 1 or 3) of uint8, got {kind}")
    elif _is_bytes_list(kind):
        if "shape" not in schema.names:
            raise DataError(f"{url}: column {name!r} holds raw pixels: expected their shape in a column 'shape'")
    elif not _is_encoded(kind):
        raise DataError(
            f"{url}: column {name!r}: expected encoded images (binary, or a struct with 'bytes'), or a tensor or list "
            f"of uint8, got {kind}"
        )


def _tensor_shape(schema: pa.Schema) -> tuple[int, int, int] | None:
    kind = schema.field(image_column(schema)).type
    if not isinstance(kind, pa.FixedShapeTensorType):
        return None
    height, width, channels = (*_sides(kind), 1)[:3]
    return height, width, channels


def _sides(kind: pa.FixedShapeTensorType) -> list[int]:
    """The shape of a tensor as it is meant; in the file its axes may lie in another order."""
    return [kind.shape[axis] for axis in kind.permutation or range(len(kind.shape))]


def _class_names(schema: pa.Schema) -> tuple[str, ...]:
    """The names that Hugging Face's datasets put in the schema's metadata, or none."""
    label = _label_column(schema)
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None or label is None:
        return ()
    try:
        return tuple(json.loads(metadata)["info"]["features"][label]["names"])
    except (ValueError, KeyError, TypeError):
        return ()


def _classes_reached(file: File, metadata: pq.FileMetaData, label: str) -> int:
    """One more than the largest label: from the footer's statistics, or else from the column."""
    index = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == label)
    largest = NO_LABEL
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(index).statistics
        if statistics is None or not statistics.has_min_max:
            column = _whole_column(file.url, file.version, label)
            return int(np.max(column.drop_null().to_numpy(), initial=NO_LABEL)) + 1
        largest = max(largest, statistics.max)
    return int(largest) + 1


def _read_table(shard: Shard, rows: NDArray[np.int64]) -> pa.Table:
    """The needed columns of some rows, which ascend."""
    with _naming(f"{shard.url}, row group {shard.row_group}"):
        metadata = _metadata(shard.url, shard.extra["version"])
        schema = metadata.schema.to_arrow_schema()
        with files.open_file(shard.url) as opened:
            file = pq.ParquetFile(opened, metadata=metadata, pre_buffer=not storage.is_local(shard.url))
            batches, seen = [], 0
            columns = _columns(schema)
            for batch in file.iter_batches(BATCH, row_groups=[shard.row_group], columns=columns, use_threads=False):
                here = rows[slice(*np.searchsorted(rows, [seen, seen + len(batch)]))] - seen
                # A slice needs no copy, but holds the whole batch: it does where most of the batch is taken.
                run = 0 < len(batch) <= 2 * len(here) and here[-1] - here[0] == len(here) - 1
                batches.append(batch.slice(here[0], len(here)) if run else batch.take(here))
                seen += len(batch)
                if not len(rows) or seen > rows[-1]:
                    break
            return pa.Table.from_batches(batches)


def _columns(schema: pa.Schema) -> list[str]:
    image = image_column(schema) or ""
    columns = [f"{image}.bytes" if pa.types.is_struct(schema.field(image).type) else image]
    if _is_bytes_list(schema.field(image).type):
        columns.append("shape")
    label = _label_column(schema)
    columns += [label] if label else []
    return columns + (["id"] if "id" in schema.names else [])


def _images(
    table: pa.Table, ids: list[str], shard: Shard
) -> tuple[list[NDArray[np.uint8] | None], list[dict[str, str]]]:
    """Each row's image, None where it cannot be decoded, and the rejects that say why."""
    column, shapes = _values(table)
    decoded: list[NDArray[np.uint8] | None] = []
    rejects = []
    for row, value in enumerate(column):
        try:
            decoded.append(_pixels(value, shapes[row]) if shapes else images.decode(_bytes(value)))
        except ValueError as error:
            decoded.append(None)
            rejects.append({"id": ids[row], "url": shard.url, "stage": "decode", "reason": str(error)})
    return decoded, rejects


def encoded_images(table: pa.Table) -> Iterator[bytes | NDArray[np.uint8] | ValueError]:
    """Each row's image: encoded, or its pixels (H, W, C) where it came without an encoding, or why it has none.

    Raises:
        DataError: there is no image column, or none of a known kind.
    """
    _check_image_column("the table", table.schema)
    column, shapes = _values(table)

    def image(row: int, value: Any) -> bytes | NDArray[np.uint8] | ValueError:
        try:
            return _pixels(value, shapes[row]) if shapes else _bytes(value)
        except ValueError as error:
            return error

    return (image(row, value) for row, value in enumerate(column))


def _values(table: pa.Table) -> tuple[pa.ChunkedArray, list[Any] | None]:
    """The column of images, and the shapes of those that are raw pixels."""
    column = table[image_column(table.schema)]
    kind = column.type
    if isinstance(kind, pa.FixedShapeTensorType):
        storages = [_in_order(chunk) for chunk in column.chunks]
        return pa.chunked_array(storages, kind.storage_type), [_sides(kind)] * len(table)
    if "shape" in table.column_names and _is_bytes_list(kind):
        return column, table["shape"].to_pylist()
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return pa.chunked_array([chunk.field("bytes") for chunk in column.chunks], kind.field(index).type), None
    return column, None


def _in_order(tensors: pa.FixedShapeTensorArray) -> pa.FixedSizeListArray:
    """The values of each tensor as :func:`_sides` tells them, row-major."""
    kind, lists = tensors.type, tensors.storage
    if not kind.permutation:
        return lists
    size = lists.type.list_size
    # Also the values under nulls, which flatten() leaves out, and which may be nulls themselves.
    values = lists.values.slice(lists.offset * size, len(lists) * size).fill_null(0).to_numpy(zero_copy_only=False)
    turned = values.reshape(-1, *kind.shape).transpose(0, *(axis + 1 for axis in kind.permutation))
    return pa.FixedSizeListArray.from_arrays(pa.array(turned.reshape(-1)), type=lists.type, mask=lists.is_null())


def _bytes(value: Any) -> bytes:
    if not value.is_valid:
        raise ValueError("the image is null")
    data: bytes = value.as_py()
    return data


def _pixels(value: Any, shape: Any) -> NDArray[np.uint8]:
    if not value.is_valid or not shape or (isinstance(shape, list) and None in shape):
        raise ValueError("the image or its shape is null")
    if not isinstance(shape, list) or not all(isinstance(side, int) for side in shape):
        raise ValueError(f"expected a shape [H, W] or [H, W, C] of integers, got {shape}")
    pixels: NDArray[np.uint8] = value.values.to_numpy()
    if len(shape) not in (2, 3) or (*shape, 1)[2] not in (1, 3) or len(pixels) != np.prod(shape):
        raise ValueError(f"expected the shape [H, W] or [H, W, 1 or 3] of {len(pixels)} values, got {shape}")
    return pixels.reshape((*shape, 1)[:3])


def _labels(table: pa.Table, shard: Shard, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    label = _label_column(table.schema)
    if label is None:
        return np.full(len(table), NO_LABEL, np.int64)
    column = table[label]
    if column.null_count:
        row = shard.first + int(rows[np.flatnonzero(column.is_null().to_numpy())[0]])
        raise DataError(f"{shard.url}, row {row}: the label is null; leave the column out for images without")
    return check_labels(column.to_numpy(), shard.extra["classes"], rows=shard.first + rows, url=shard.url)
