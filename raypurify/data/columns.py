"""Images in the columns of a table: which columns there are, of which types, and what a row holds.

The image is in the column ``image`` or ``img``:

- ``struct<bytes: binary, ...>`` (Hugging Face) or ``binary``: an encoded image;
- ``arrow.fixed_shape_tensor`` of uint8, (H, W) or (H, W, C);
- a list of uint8, row-major, with its shape [H, W] or [H, W, C] in the column ``shape``.

``label`` (or ``labels``, ``fine_label``) is an integer, and may be missing. ``id`` is a string, and may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypurify.data.base import DataError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


def image_column(schema: pa.Schema) -> str | None:
    """The name of the column of images, or None where there is none."""
    return next((name for name in IMAGE_COLUMNS if name in schema.names), None)


def label_column(schema: pa.Schema) -> str | None:
    """The name of the column of labels, or None where there is none."""
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


def class_names(schema: pa.Schema) -> tuple[str, ...]:
    """The names that Hugging Face's datasets put in the schema's metadata, or none."""
    label = label_column(schema)
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None or label is None:
        return ()
    try:
        return tuple(json.loads(metadata)["info"]["features"][label]["names"])
    except (ValueError, KeyError, TypeError):
        return ()


def names_of_classes(label: str, names: Sequence[str]) -> dict[str, str]:
    """A schema's metadata from which :func:`class_names`, and Hugging Face's datasets, read the names of the classes.

    Args:
        label: the column of the labels.
        names: by number.
    """
    features = {label: {"names": list(names), "_type": "ClassLabel"}}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def are_attacked(schema: pa.Schema) -> bool:
    """Whether the columns are those of images that ``raypurify attack`` wrote."""
    return {"clean", "pred_adversarial"} <= set(schema.names)


def needed(schema: pa.Schema) -> list[str]:
    """The columns that reading images, labels and ids takes."""
    image = image_column(schema) or ""
    columns = [f"{image}.bytes" if pa.types.is_struct(schema.field(image).type) else image]
    if _is_bytes_list(schema.field(image).type):
        columns.append("shape")
    label = label_column(schema)
    columns += [label] if label else []
    return columns + (["id"] if "id" in schema.names else [])


def check(url: str, schema: pa.Schema) -> None:
    """Check the types of the columns of images, labels and ids.

    Raises:
        DataError: one is missing or of another type; names ``url``.
    """
    _check_image_column(url, schema)
    label = label_column(schema)
    if label is not None and not pa.types.is_integer(schema.field(label).type):
        raise DataError(f"{url}: column {label!r}: expected integers, got {schema.field(label).type}")
    if "id" in schema.names and schema.field("id").type not in (pa.string(), pa.large_string()):
        raise DataError(f"{url}: column 'id': expected strings, got {schema.field('id').type}")


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


def tensor_shape(schema: pa.Schema) -> tuple[int, int, int] | None:
    """(H, W, C) of all images, where their type tells it."""
    kind = schema.field(image_column(schema)).type
    if not isinstance(kind, pa.FixedShapeTensorType):
        return None
    height, width, channels = (*_sides(kind), 1)[:3]
    return height, width, channels


def _sides(kind: pa.FixedShapeTensorType) -> list[int]:
    """The shape of a tensor as it is meant; in the file its axes may lie in another order."""
    return [kind.shape[axis] for axis in kind.permutation or range(len(kind.shape))]


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
