"""The pickles that the Python version of CIFAR-10 consists of, brought to the binary version's records.

A pickle can run any code of its author's. This reader admits only what the official files hold: containers, strings,
numbers, and arrays of numbers; whatever else a pickle names is refused.
"""

from __future__ import annotations

import pickle
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from raypurify.data.base import DataError, check_labels

PIXELS = 32 * 32 * 3
CLASSES = 10


def records(stream: IO[bytes], url: str) -> bytes:
    """The records of a pickled batch.

    Args:
        stream: the pickle, at its start.
        url: its name in messages.

    Raises:
        DataError: truncated or no pickle; or it names a global that is not admitted; or it is no batch of CIFAR-10.
    """
    try:
        batch = _Unpickler(stream, encoding="latin1").load()
    except _Refused as error:
        raise DataError(f"{url}: {error}") from error
    except Exception as error:
        # A damaged pickle leads the unpickler to almost any exception.
        raise DataError(
            f"{url}: truncated, or no pickle: cannot be read near offset {stream.tell()}: "
            f"{type(error).__name__}: {error}; fetch the file again"
        ) from error
    data, labels = _data_and_labels(batch, url)
    return np.column_stack([labels.astype(np.uint8), data]).tobytes()


def _data_and_labels(batch: Any, url: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if not isinstance(batch, dict):
        raise DataError(f"{url}: expected a pickled dict with 'data' and 'labels', got a {type(batch).__name__}")
    batch = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    data, labels = batch.get("data"), batch.get("labels")
    if data is None or labels is None:
        raise DataError(f"{url}: expected a pickled dict with 'data' and 'labels', got the keys {sorted(batch)}")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (PIXELS,):
        got = f"{data.shape} {data.dtype}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{url}: 'data': expected an array (N, {PIXELS}) of uint8, got {got}")
    if len(labels) != len(data):
        raise DataError(f"{url}: {len(labels)} labels, but {len(data)} images")
    numbers = np.asarray(labels)
    if numbers.dtype.kind not in "iu":
        raise DataError(f"{url}: 'labels': expected integers, got {numbers.dtype}")
    return data, check_labels(numbers, CLASSES, rows=np.arange(len(numbers)), url=url)


class _Refused(pickle.UnpicklingError):
    """The pickle names what is not admitted."""


class _Unpickler(pickle.Unpickler):
    """Admits the names that a pickled numeric array holds, each as a stand-in that can do nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _Refused(
                f"the pickle asks for {module}.{name}, which no official CIFAR-10 file does; it may be hostile, and is "
                "refused. Fetch the official archive"
            ) from None


def _empty_array(*_: Any) -> NDArray[Any]:
    """Stands in for numpy's ``_reconstruct``: the array takes its shape and content from the state that follows."""
    return np.ndarray((0,), np.uint8)


def _number_type(name: str, *_: Any) -> np.dtype[Any]:
    """Stands in for ``numpy.dtype``: numbers only, never objects; a copy, whose state cannot change numpy's own."""
    kind = np.dtype(name, copy=True)
    if kind.kind not in "biuf":
        raise _Refused(f"the pickle asks for an array of {kind}, which no official CIFAR-10 file does; it is refused")
    return kind


def _latin1(text: str, encoding: str) -> bytes:
    """Stands in for ``_codecs.encode``, with which Python 3 writes the bytes of an array in an old protocol."""
    if encoding != "latin1":
        raise _Refused(f"the pickle asks for the encoding {encoding!r}; only latin1 is admitted")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): "numpy.ndarray",
    ("numpy", "dtype"): _number_type,
    ("_codecs", "encode"): _latin1,
}
