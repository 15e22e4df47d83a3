"""An attack on embedded digits, and the images that a run of it has written."""

from typing import Any

import pyarrow as pa
import pytest

from raypurify import storage
from raypurify.evaluation.generation import GenerationConfig
from raypurify.runs import schema
from raypurify.training.pairs import attacked


@pytest.fixture
def config(small_classifier: str) -> GenerationConfig:
    return GenerationConfig(
        input="digits", split="train", limit=256, attack="pgd,epsilon=0.1,steps=2", classifier=small_classifier
    )


def images_of(output: str) -> pa.Table:
    return storage.read_tables(storage.list_files(f"{output}/images", ".parquet"), schema.IMAGES).sort_by("id")


def kept(url: str) -> Any:
    """A source of pairs of the user's, which was attacked beforehand."""
    return attacked.build(url=url)
