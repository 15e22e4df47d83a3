"""The images that a training held out, as a dataset: ``--data raypurify.training.held_out:held_out,data=mnist``."""

from __future__ import annotations

from typing import Literal

from raypurify.data import Found, labels_of, open_source
from raypurify.training.order import hold_out


def held_out(*, data: str, split: Literal["train", "test"], images: int = 1000, seed: int = 0) -> Found:
    """What a training on all of a training split has not seen; for both splits it is the same.

    Args:
        data: the training's ``--data``.
        split: any.
        images: its ``--validation``.
        seed: its ``--seed``.

    Raises:
        ValueError, DataError: no such data, or fewer images.
    """
    source = open_source(data, split="train")
    _, held = hold_out(source, labels_of(source), images, seed)
    return Found(
        shards=held.shards,
        image_shape=held.image_shape,
        classes=held.classes,
        contents=(source.fingerprint, str(images), str(seed)),
    )
