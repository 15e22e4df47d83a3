"""Images between their forms: encoded bytes, uint8 (H, W, C), and the float32 (N, C, H, W) in [0, 1] of networks."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 89_478_485
"""Height times width beyond which an image is refused: Pillow's own limit, a quarter of a gigabyte in RGB."""

_LINEAR_16_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def decode(data: bytes) -> NDArray[np.uint8]:
    """Decode one image of any format that Pillow reads.

    Grey images keep one channel; all others become RGB: palettes are looked up, CMYK and the like are converted. 16-bit
    grey is scaled to 8 bits and rounded. Transparency is composited on white, as browsers show it. The EXIF orientation
    is applied. Of several frames the first is taken.

    Returns:
        (H, W, C) uint8, C 1 or 3.

    Raises:
        ValueError: not an image, damaged, cut off, of more than ``MAX_PIXELS`` pixels, or of 32-bit pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels are more than the {MAX_PIXELS} allowed")
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_array(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"more than the {MAX_PIXELS} pixels allowed: {error}") from error
    except ValueError:
        raise
    except Exception as error:
        # Pillow's plugins raise whatever a damaged file leads them to: SyntaxError, struct.error, IndexError, ...
        raise ValueError(f"cannot be decoded: {type(error).__name__}: {error}") from error


def _to_array(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in _LINEAR_16_BIT:
        values = np.asarray(image).astype(np.int64)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise ValueError(f"pixels of mode {image.mode} reach beyond 16 bits; convert the image to 8 or 16 bits")
        return ((values + 128) // 257).astype(np.uint8)[:, :, None]
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; convert the image to 8 or 16 bits")
    if image.has_transparency_data:
        grey = image.mode in ("L", "LA", "La", "1")
        layer = image.convert("RGBA")
        background = Image.new("RGBA", layer.size, "white")
        image = Image.alpha_composite(background, layer).convert("L" if grey else "RGB")
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    array = np.array(image)
    return array[:, :, None] if array.ndim == 2 else array


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encode (H, W, C) uint8, C 1 or 3, as PNG, without loss.

    Raises:
        ValueError: another shape or dtype.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(f"expected (H, W, 1 or 3) uint8, got {image.shape} {image.dtype}")
    out = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(out, format="PNG")
    return out.getvalue()


def to_uint8_nhwc(images: Tensor) -> NDArray[np.uint8]:
    """(N, C, H, W) float in [0, 1] -> (N, H, W, C) uint8, rounded to the nearest; values outside are clipped."""
    pixels = images.detach().float().mul(255).round().clamp(0, 255)
    return np.ascontiguousarray(pixels.cpu().numpy().astype(np.uint8).transpose(0, 2, 3, 1))
