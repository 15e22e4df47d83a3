"""A first look at the inputs, before the work."""

from __future__ import annotations

from raypurify.cleaning import quarantine
from raypurify.cleaning.base import Unit
from raypurify.cleaning.cleaner import Cleaning, channels_of, fits


def first_look(work: Cleaning, unit: Unit, count: int) -> list[str]:
    """What a person should know before such images are given to this purifier; ``count`` are decoded, and no more.

    Raises:
        ValueError: the purifier takes none of them.
    """
    purifier = work.purifier
    channels = channels_of(purifier, purifier.build(), "cpu")
    shapes = quarantine.inspect(unit, work.config.max_pixels, count).shapes
    if shapes and not any(fits(shape[2], channels) for shape in shapes):
        raise ValueError(
            f"{purifier.name} takes images of {channels} channel(s), but the first images have {shapes[0][2]}: "
            "give a purifier that was trained for such images"
        )
    trained = tuple(purifier.config.get("image_shape", ()))[:2]
    sizes = sorted({shape[:2] for shape in shapes})
    if not trained or set(sizes) <= {trained}:
        return []
    shown = ", ".join(f"{height}x{width}" for height, width in sizes[:3]) + (", ..." if len(sizes) > 3 else "")
    return [
        f"{purifier.name} was trained on images of {trained[0]}x{trained[1]} pixels "
        f"({purifier.config.get('data', 'of unknown data')}); these are of {shown}: look at some before you use them"
    ]
