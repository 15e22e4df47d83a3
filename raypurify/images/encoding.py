"""Pixels to encoded bytes, and the float32 (N, C, H, W) in [0, 1] of networks to uint8 (N, H, W, C)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raypurify.images.decoding import FORMATS, Picture

if TYPE_CHECKING:
    from torch import Tensor


def encode(
    picture: Picture, format: str, *, quality: int = 90, keep_exif: bool = False
) -> tuple[bytes, tuple[str, ...]]:
    """Encode a picture; the same picture gives the same bytes.

    The ICC profile is kept where the format can hold it, EXIF if asked for; a format without transparency shows the
    picture on white.

    Args:
        picture: what :func:`read_picture` gave, perhaps with other pixels.
        format: a key of ``FORMATS``.
        quality: 1 to 100, of JPEG, which from 90 on keeps colours in full resolution, and of WebP, which at 100 is
            lossless; the other formats always are.
        keep_exif: write ``picture.exif`` too.

    Returns:
        The file, and notes of what was converted or left out.

    Raises:
        ValueError: an unknown format, a quality out of range, pixels of another shape or dtype, or sides longer than
            the format allows.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}: known are {', '.join(FORMATS)}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be in [1, 100]; got {quality!r}")
    kind, notes = FORMATS[format], []
    image = _image_of(picture.pixels)
    if max(image.size) > kind.longest_side:
        raise ValueError(
            f"{format} holds at most {kind.longest_side} pixels a side; got {image.width}x{image.height}: "
            "write png instead"
        )
    icc = picture.icc if kind.icc else None
    if image.mode == "L" and not kind.grey:
        notes.append(f"grey written as RGB for {format}")
        image, icc = image.convert("RGB"), None
    if picture.icc and not icc:
        notes.append(f"colour profile left out for {format}")
    if picture.alpha is not None:
        if kind.alpha:
            image.putalpha(_mask(picture.alpha))
        else:
            notes.append(f"alpha composited on white for {format}")
            image = _image_of(on_white(picture))
    exif = _exif_for(picture.exif, format, notes) if keep_exif else None
    return _saved(image, kind.pillow, **_options(format, quality, exif), **_present(icc_profile=icc, exif=exif)), tuple(
        notes
    )


def on_white(picture: Picture) -> NDArray[np.uint8]:
    """(H, W, C) uint8: a picture's pixels, laid on white where it is transparent."""
    if picture.alpha is None:
        return picture.pixels
    image = _image_of(picture.pixels)
    laid = Image.composite(image, Image.new(image.mode, image.size, "white"), _mask(picture.alpha))
    return np.asarray(laid).reshape(picture.pixels.shape)


def _mask(alpha: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(alpha))


_LONGEST_JPEG_EXIF = 65_533


def _exif_for(exif: bytes | None, format: str, notes: list[str]) -> bytes | None:
    if exif and FORMATS[format].exif and not (format == "jpeg" and len(exif) > _LONGEST_JPEG_EXIF):
        return exif
    if exif:
        notes.append(f"EXIF of {len(exif)} bytes left out for {format}")
    return None


def _options(format: str, quality: int, exif: bytes | None) -> dict[str, Any]:
    if format == "jpeg":
        return {"quality": quality, "subsampling": "4:4:4" if quality >= 90 else "4:2:0"}
    if format == "webp":
        # "exact" keeps the colours under transparent pixels, as the other formats do.
        return {"quality": quality, "lossless": quality == 100, "exact": True}
    # Pillow's own TIFF writer knows groups of EXIF, but does not compress; libtiff's is the other way round.
    return {"compression": "tiff_adobe_deflate"} if format == "tiff" and not exif else {}


def _present(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def thumbnail(pixels: NDArray[np.uint8], side: int) -> bytes:
    """(H, W, C) uint8, C 1 or 3, as a PNG of at most ``side`` pixels a side."""
    image = _image_of(pixels)
    image.thumbnail((side, side))
    return _saved(image, "PNG")


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encode (H, W, C) uint8, C 1 or 3, as PNG, without loss.

    Raises:
        ValueError: another shape or dtype.
    """
    return _saved(_image_of(image), "PNG")


def _image_of(pixels: NDArray[np.uint8]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(f"expected (H, W, 1 or 3) uint8, got {pixels.shape} {pixels.dtype}")
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _saved(image: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format=format, **options)
    return out.getvalue()


def to_uint8_nhwc(images: Tensor) -> NDArray[np.uint8]:
    """(N, C, H, W) float in [0, 1] -> (N, H, W, C) uint8, rounded to the nearest; values outside are clipped."""
    pixels = images.detach().float().mul(255).round().clamp(0, 255)
    return np.ascontiguousarray(pixels.cpu().numpy().astype(np.uint8).transpose(0, 2, 3, 1))
