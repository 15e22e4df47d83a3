"""Encoded bytes to pixels: uint8 (H, W, C), with what is written again beside the colours."""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

MAX_PIXELS = 89_478_485
"""Height times width beyond which an image is refused: Pillow's own limit, a quarter of a gigabyte in RGB."""

LARGEST_PIXELS = 2 * MAX_PIXELS
"""The same where more are allowed: beyond this Pillow refuses an image by itself."""

MAX_PROFILE = 1 << 22
"""Bytes of an ICC profile beyond which it is left out; those of cameras and screens are far below."""

EXTENSIONS = ("png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "dib", "tif", "tiff")
"""What names of files end in that :func:`read_picture` reads."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format that pictures are written in, and what it can hold beside the colours."""

    pillow: str
    extension: str
    content_type: str
    grey: bool = True
    alpha: bool
    icc: bool
    exif: bool
    longest_side: int = 2**31 - 1
    """Pixels."""


FORMATS: Mapping[str, Format] = {
    "png": Format(pillow="PNG", extension="png", content_type="image/png", alpha=True, icc=True, exif=True),
    "jpeg": Format(
        pillow="JPEG",
        extension="jpg",
        content_type="image/jpeg",
        alpha=False,
        icc=True,
        exif=True,
        longest_side=65_500,
    ),
    "webp": Format(
        pillow="WEBP",
        extension="webp",
        content_type="image/webp",
        grey=False,
        alpha=True,
        icc=True,
        exif=True,
        longest_side=16_383,
    ),
    "bmp": Format(pillow="BMP", extension="bmp", content_type="image/bmp", alpha=False, icc=False, exif=False),
    "tiff": Format(pillow="TIFF", extension="tiff", content_type="image/tiff", alpha=True, icc=True, exif=True),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """An image as it was read, with what is written again beside its colours."""

    pixels: NDArray[np.uint8]
    """(H, W, C), C 1 or 3; not composited with the alpha channel."""
    alpha: NDArray[np.uint8] | None = None
    """(H, W), 0 where transparent; None: opaque."""
    notes: tuple[str, ...] = ()
    """What was converted or left out on the way, in words."""
    icc: bytes | None = None
    """ICC profile, of the colour space of ``pixels``."""
    exif: bytes | None = None
    """Camera, dates, author, place, as an EXIF block with its header: without orientation, thumbnail, maker's notes."""


_LINEAR_16_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")

# Of 16-bit values, rounded: (v + 128) // 257.
_IN_8_BITS = ((np.arange(65536) + 128) // 257).astype(np.uint8)


def _in_8_bits(image: Image.Image) -> NDArray[np.uint8]:
    values = np.asarray(image)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise PictureError(f"pixels of mode {image.mode} reach beyond 16 bits; convert the image to 8 or 16 bits")
    return _IN_8_BITS[values]


class PictureError(ValueError):
    """An image that is not read, and why: written for people, where Pillow's own errors are not."""


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise PictureError(f"{width}x{height} pixels are more than the {max_pixels} allowed")


_BEGINNINGS = {
    name: re.compile(beginning, re.DOTALL | re.IGNORECASE)
    for name, beginning in {
        "a PNG": rb"\x89PNG\r\n\x1a\n",
        "a JPEG": rb"\xff\xd8\xff",
        "a WebP": rb"RIFF....WEBP",
        "a BMP": rb"BM",
        "a TIFF": rb"II[*+]\0|MM\0[*+]",
        "a GIF": rb"GIF8",
        "a HEIC or AVIF": rb"....ftyp(heic|heix|hevc|mif1|msf1|avif|avis)",
        "a JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
        "a JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
        "a PSD": rb"8BPS",
        "an ICO": rb"\0\0[\x01\x02]\0",
        "an SVG": rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg",
        "an HTML page": rb"\s*(<!doctype html|<html|<head)",
        "an XML file": rb"\s*<\?xml",
        "a PDF": rb"%PDF",
        "a ZIP archive": rb"PK\x03\x04",
        "a GZIP file": rb"\x1f\x8b",
        "a Parquet file": rb"PAR1",
    }.items()
}

_REFUSED = frozenset({"avif", "gif", "heic", "heif", "ico", "j2k", "jp2", "jxl", "pbm", "pgm", "ppm", "psd", "svg"})

_OPENERS: Mapping[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "a PNG": PngImagePlugin.PngImageFile,
    "a JPEG": JpegImagePlugin.JpegImageFile,
    "a WebP": WebPImagePlugin.WebPImageFile,
    "a BMP": BmpImagePlugin.BmpImageFile,
    "a TIFF": TiffImagePlugin.TiffImageFile,
}


def has_known_extension(name: str) -> bool:
    """Whether a file of this name says that it is of a format which :func:`read_picture` reads."""
    return name.lower().rpartition(".")[2] in EXTENSIONS and "." in name


def is_named_as_image(name: str) -> bool:
    """Whether a file of this name says that it is an image, also of a format which :func:`read_picture` refuses."""
    return has_known_extension(name) or (name.lower().rpartition(".")[2] in _REFUSED and "." in name)


def decode(data: bytes) -> NDArray[np.uint8]:
    """:func:`read_picture` of any format, shown on white, as browsers do: the pixels of a dataset's image.

    Returns:
        (H, W, C) uint8, C 1 or 3.

    Raises:
        ValueError: see :func:`read_picture`.
    """
    picture = read_picture(data, any_format=True)
    return picture.pixels if picture.alpha is None else _on_white(picture.pixels, picture.alpha)


def _on_white(pixels: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    layer = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).convert("RGB")
    layer.putalpha(Image.fromarray(alpha))
    image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.ascontiguousarray(np.asarray(image)[:, :, : pixels.shape[2]])


def pixels_of(data: bytes) -> int:
    """Height times width, by the header; 0 where :func:`read_picture` can't read it. No pixel is decoded."""
    kind = _kind(data)
    try:
        with _reasons(kind):
            if kind == "a WebP":
                width, height = _webp_size(data)
            else:
                with _opened(data, kind) as image:
                    width, height = image.size
    except ValueError:
        return 0
    return width * height


def shape_by_header(data: bytes) -> tuple[int, int, int] | None:
    """(H, W, C) that :func:`decode` would give, by the header; None where that does not tell. No pixel is decoded.

    Args:
        data: the beginning of the file, or all of it.
    """
    kind = _kind(data)
    with suppress(ValueError), _reasons(kind):
        if kind == "a WebP":
            width, height = _webp_header(data)
            # An orientation would stand behind the pixels.
            return None if data[12:16] == b"VP8X" and data[20] & 8 else (height, width, 3)
        with _opened(data, kind, any_format=True) as image:
            width, height = image.size
            # Pillow's own getexif would decode a PNG; its size of a TIFF is that of the upright image.
            turned = kind != "a TIFF" and Image.Image.getexif(image).get(_ORIENTATION, 1) >= 5
            grey = image.mode in ("L", "1", "LA", "La", *_LINEAR_16_BIT) or _raw_mode(image).startswith("LA;16")
            return (width, height, 1 if grey else 3) if turned else (height, width, 1 if grey else 3)
    return None


def read_picture(data: bytes, *, max_pixels: int = MAX_PIXELS, any_format: bool = False) -> Picture:
    """Read an image: PNG, JPEG, WebP, BMP or TIFF, by its content, whatever the file is called.

    Grey of 1 to 16 bits becomes (H, W, 1); RGB, palettes, CMYK and YCbCr become (H, W, 3) of 8 bits. An alpha channel,
    or a colour that stands for transparency, is kept apart. The EXIF orientation is applied; of several frames the
    first is taken. What is converted or left out is noted.

    Args:
        data: the whole file.
        max_pixels: height times width beyond which the image is refused, before it is decoded; up to
            ``LARGEST_PIXELS``.
        any_format: also read the other formats that Pillow knows. Their further frames are not noted.

    Raises:
        ValueError: empty, not an image, of another format, truncated, damaged, too large, or of pixels whose range is
            unknown (floating point, signed, 12 and 32 bits).
    """
    kind, allowed = _kind(data), min(max_pixels, LARGEST_PIXELS)
    with _reasons(kind):
        if kind == "a WebP":
            # Pillow's reader makes room for the pixels as it opens the file.
            _check_size(_webp_size(data), allowed)
        with _opened(data, kind, any_format) as opened:
            _check_size(opened.size, allowed)
            chunks = _check_png(memoryview(data)) if kind == "a PNG" else {}
            # The frames of other formats are counted by reading them, and a damaged one would spoil the first.
            frames = _frames(opened) if kind in _OPENERS else []
            notes = [*frames, *_colours_left_out(chunks)]
            raw_mode = _raw_mode(opened)
            image, exif = _upright(opened, notes)
            pixels, alpha = _channels(image, raw_mode, notes)
            icc = _profile(opened.info.get("icc_profile"), pixels.shape[2], notes)
    return Picture(pixels=pixels, alpha=alpha, notes=tuple(notes), icc=icc, exif=exif)


def _kind(data: bytes) -> str:
    """What the file is, by its beginning, with its article."""
    kinds = (kind for kind, beginning in _BEGINNINGS.items() if beginning.match(data[:1024]))
    return next(kinds, "an image" if data else "empty")


def _opened(data: bytes, kind: str, any_format: bool = False) -> ImageFile.ImageFile:
    """The image with its header read.

    Raises:
        PictureError: of no format that is read.
    """
    if kind in _OPENERS:
        return _OPENERS[kind](io.BytesIO(data))
    if any_format:
        with suppress(UnidentifiedImageError):
            return Image.open(io.BytesIO(data))
    expected = "expected an image that Pillow reads" if any_format else "expected PNG, JPEG, WebP, BMP or TIFF"
    if kind == "an image":
        raise PictureError(f"is not an image: {expected}; it begins with {data[:8]!r}")
    raise PictureError(f"is {kind}; {expected}")


@contextmanager
def _reasons(kind: str) -> Iterator[None]:
    """Gives whatever Pillow raises on a damaged file as a ValueError that says so, and keeps its warnings quiet."""
    try:
        with _quiet():
            yield
    except (PictureError, MemoryError):
        raise
    except Exception as error:
        # Pillow's plugins raise whatever a damaged file leads them to: SyntaxError, struct.error, IndexError, ...
        text = str(error) or type(error).__name__
        if "Decompressed data too large" in text or "Too much memory used in text chunks" in text:
            raise ValueError(f"is refused: a text or colour profile in it is a decompression bomb ({text})") from error
        if isinstance(error, Image.DecompressionBombError):
            raise ValueError(f"has more than the {LARGEST_PIXELS} pixels allowed: {text}") from error
        cut = isinstance(error, struct.error | EOFError | IndexError) or re.search("(?i)truncated|missing dim", text)
        raise ValueError(f"is {kind} that is {'truncated or ' if cut else ''}damaged: {text}") from error


_quiet_lock = threading.Lock()
_quiet_threads = 0
_quiet_filters = warnings.catch_warnings()


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow's warnings (of doubtful EXIF and the like) are not shown while any thread is inside.

    The filters belong to the process: threads that each saved and restored them would restore each other's.
    """
    global _quiet_threads, _quiet_filters
    with _quiet_lock:
        if _quiet_threads == 0:
            _quiet_filters = warnings.catch_warnings()
            _quiet_filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _quiet_threads += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_threads -= 1
            if _quiet_threads == 0:
                _quiet_filters.__exit__(None, None, None)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of a whole WebP."""
    length = struct.unpack_from("<I", data, 4)[0]
    if 8 + length > len(data):
        raise PictureError(f"is a WebP that is truncated: {8 + length} bytes by its header, {len(data)} in the file")
    return _webp_header(data)


def _webp_header(data: bytes) -> tuple[int, int]:
    """Width and height by the beginning of a WebP: RFC 9649, sections 2.5 to 2.7."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise PictureError(f"is a WebP that is damaged: its first chunk is {chunk!r}")


def _check_png(data: memoryview) -> dict[bytes, bytes]:
    """Check the checksums of the chunks that hold the image, which Pillow does not look at where they hold pixels.

    Returns:
        The chunks that say what the colours are: gAMA, cICP, sRGB and the like. Large ones are cut.
    """
    chunks: dict[bytes, bytes] = {}
    position = 8
    while position + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        critical = not name[0] & 32
        if critical and zlib.crc32(data[position + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise PictureError(f"is a PNG that is damaged: the chunk {name!r} does not match its checksum")
        if name == b"IEND":
            return chunks
        if name in (b"gAMA", b"cHRM", b"cICP", b"sRGB", b"iCCP"):
            chunks[name] = bytes(data[position + 8 : min(end - 4, position + 40)])
        position = end
    raise PictureError("is a PNG that is truncated: it ends before its last chunk")


_LIKE_SRGB = {
    b"gAMA": struct.pack(">I", 45455),
    b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
    b"cICP": bytes((1, 13, 0, 1)),
}


def _colours_left_out(chunks: Mapping[bytes, bytes]) -> list[str]:
    """A note of each PNG chunk that is not written again, and would have shown the image in other colours than sRGB."""
    # PNG, third edition, section 4.3: cICP goes before a profile, and this before sRGB, gAMA and cHRM.
    telling = [b"cICP"] if {b"cICP", b"iCCP", b"sRGB"} & set(chunks) else [b"gAMA", b"cHRM"]
    return [
        f"colour coding ({name.decode()}) left out"
        for name in telling
        if name in chunks and chunks[name] != _LIKE_SRGB[name]
    ]


def _frames(image: ImageFile.ImageFile) -> list[str]:
    """A note of further frames."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) or "mp" in image.info:
        # Their number is known only from all their headers, and one that is damaged would spoil the first frame too.
        more = getattr(image, "is_animated", False) or "mp" in image.info
        return ["first of several frames"] if more else []
    frames = getattr(image, "n_frames", 1)
    return [f"first of {frames} frames"] if frames > 1 else []


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How Pillow calls the samples in the file.

    Raises:
        PictureError: a TIFF that Pillow would read wrong: signed or 12-bit samples, and some layouts of 16 bits.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
        kinds = set(image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, (1,)))
        if kinds != {1} or bits not in (1, 2, 4, 8, 16):
            names = {1: "unsigned", 2: "signed", 3: "floating-point"}
            kind = ", ".join(names.get(kind, "unknown") for kind in sorted(kinds))
            raise PictureError(f"its samples are {kind} of {bits} bits; convert the image to unsigned 8 or 16 bits")
        inverted = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0) == 0
        planar = image.tag_v2.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2
        if bits == 16 and (inverted or planar):
            layout = "in separate planes" if planar else "with white as zero"
            raise PictureError(f"its samples are 16 bits {layout}; convert the image to 8 bits")
    arguments: Any = image.tile[0][3] if image.tile else image.mode
    raw_mode = arguments[0] if isinstance(arguments, tuple) else arguments
    return raw_mode if isinstance(raw_mode, str) else image.mode


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


def _upright(image: ImageFile.ImageFile, notes: list[str]) -> tuple[Image.Image, bytes | None]:
    """The decoded image with its orientation applied, and the EXIF to keep."""
    turns_itself = isinstance(image, TiffImagePlugin.TiffImageFile)
    if not turns_itself:
        image.load()
    orientation, exif = _exif(image, notes)
    image.load()
    if orientation not in _TURNS:
        return image, exif
    notes.append("orientation applied")
    return image if turns_itself else image.transpose(_TURNS[orientation]), exif


# Description, make, model, resolution, software, date, author, host, copyright. A TIFF's other tags say how its pixels
# lie in the file, and would be wrong, or worse, in another.
_KEPT_TAGS = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x013C, 0x8298)
_KEPT_GROUPS = (0x8769, 0x8825)  # the picture's taking, its place
_DROPPED = (0x927C, 0xA005)  # maker's notes and interoperability hold offsets into the file that they were in


def _exif(image: Image.Image, notes: list[str]) -> tuple[int, bytes | None]:
    """The orientation, 1 where there is none, and what is kept of the rest."""
    orientation = 1
    try:
        found = image.getexif()
        orientation = found.get(_ORIENTATION, 1)
        kept = Image.Exif()
        for tag in _KEPT_TAGS:
            if tag in found:
                kept[tag] = found[tag]
        for group in _KEPT_GROUPS:
            if group in found:
                kept[group] = {tag: value for tag, value in found.get_ifd(group).items() if tag not in _DROPPED}
        return orientation, kept.tobytes() if len(kept) else None
    except Exception:
        # A doubtful block beside the image is no reason to lose the image; parsing it raises anything at all.
        notes.append("unreadable EXIF left out")
        return orientation, None


def _channels(
    image: Image.Image, raw_mode: str, notes: list[str]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """(H, W, C) and alpha (H, W)."""
    if image.mode in ("L", "1", *_LINEAR_16_BIT):
        return _grey(image, raw_mode, notes)
    if image.mode in ("P", "PA", "CMYK", "YCbCr"):
        notes.append(f"{'palette' if image.mode in ('P', 'PA') else image.mode} converted to RGB")
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif image.mode == "La":
        image = image.convert("LA")
    if image.mode not in ("LA", "RGB", "RGBA"):
        raise PictureError(f"its pixels are of the kind {image.mode}; convert the image to grey, RGB or CMYK of 8 bits")
    samples = np.array(image)
    deep = ";16" in raw_mode and raw_mode != "BGR;16"  # the latter has 5 or 6 bits a channel
    if deep:
        notes.append("16 bits cut to 8 bits")
    if samples.shape[2] != 3:
        colours = 1 if samples.shape[2] == 2 or raw_mode.startswith("LA;16") else 3
        return np.ascontiguousarray(samples[:, :, :colours]), np.ascontiguousarray(samples[:, :, -1])
    key = image.info.get("transparency")
    if key is not None and deep:
        notes.append("transparent colour of 16 bits left out")
    elif key is not None:
        return samples, np.where((samples == np.asarray(key)).all(axis=2), 0, 255).astype(np.uint8)
    return samples, None


def _grey(image: Image.Image, raw_mode: str, notes: list[str]) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    key = image.info.get("transparency")
    if image.mode in _LINEAR_16_BIT:
        notes.append("16-bit grey scaled to 8 bits")
        pixels, keyed = _in_8_bits(image), np.asarray(image) == key
    else:
        bits = 1 if image.mode == "1" else int(raw_mode[2]) if raw_mode[:3] in ("L;2", "L;4") else 8
        if bits < 8:
            notes.append(f"{bits}-bit grey expanded to 8 bits")
        pixels = np.array(image.convert("L"))
        # The file's value of the transparent shade is in its own bits; Pillow gives that of 1 bit in 8.
        keyed = pixels == (key * (255 // (2**bits - 1)) if key is not None and 1 < bits < 8 else key)
    return pixels[:, :, None], None if key is None else np.where(keyed, 0, 255).astype(np.uint8)


def _profile(icc: bytes | None, channels: int, notes: list[str]) -> bytes | None:
    """The ICC profile, if it is of the colour space that the pixels are in: one of another would shift all colours."""
    if not icc:
        return None
    space = bytes(icc[16:20]) if len(icc) >= 128 and icc[36:40] == b"acsp" else b""
    if space == (b"GRAY" if channels == 1 else b"RGB ") and len(icc) <= MAX_PROFILE:
        return bytes(icc)
    if len(icc) > MAX_PROFILE:
        notes.append(f"colour profile of {len(icc)} bytes left out")
    elif not space:
        notes.append("unreadable colour profile left out")
    else:
        name = space.decode("ascii", "replace").strip()
        notes.append(f"colour profile for {name} left out: the pixels are {'grey' if channels == 1 else 'RGB'}")
    return None
