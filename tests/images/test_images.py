from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from raypurify import images
from raypurify.training.batches import batch_of

RNG = np.random.default_rng(0)
LOSSLESS = {"lossless": True, "exact": True}


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(channels: int) -> None:
    image = RNG.integers(0, 256, (7, 5, channels), dtype=np.uint8)
    decoded = images.decode(images.encode_png(image))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, image)


def test_bilevel_becomes_grey() -> None:
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    np.testing.assert_array_equal(images.decode(encode(bits))[..., 0], [[0, 255], [255, 0]])


def test_palette_becomes_rgb() -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode=None).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    np.testing.assert_array_equal(
        images.decode(encode(image)), [[[10, 20, 30], [40, 50, 60]], [[40, 50, 60], [10, 20, 30]]]
    )


def test_16_bits_are_scaled_and_rounded() -> None:
    values = np.array([[0, 128, 129], [257, 65535, 32896]], np.uint16)
    np.testing.assert_array_equal(images.decode(encode(Image.fromarray(values)))[..., 0], [[0, 0, 1], [1, 255, 128]])
    np.testing.assert_array_equal(
        images.decode(encode(Image.fromarray(values), "TIFF"))[..., 0], [[0, 0, 1], [1, 255, 128]]
    )


def test_alpha_is_composited_on_white() -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]], [[0, 0, 0, 128], [255, 0, 0, 128]]], np.uint8)
    expected = np.array([[[10, 20, 30], [255, 255, 255]], [[127, 127, 127], [255, 127, 127]]])
    decoded = images.decode(encode(Image.fromarray(rgba)))
    np.testing.assert_allclose(decoded, expected, atol=1)
    grey = images.decode(encode(Image.fromarray(rgba).convert("LA")))
    assert grey.shape == (2, 2, 1)
    assert grey[0, 1, 0] == 255


def test_cmyk_becomes_rgb_and_jpeg_is_near() -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 16, dtype=np.uint8)[:, None, None], (16, 16, 3))
    rgb = Image.fromarray(np.ascontiguousarray(smooth))
    np.testing.assert_allclose(images.decode(encode(rgb, "JPEG", quality=95)).astype(int), smooth, atol=8)
    assert images.decode(encode(rgb.convert("CMYK"), "JPEG")).shape == (16, 16, 3)


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.new("RGB", (8, 4)), "JPEG", exif=exif)
    assert images.decode(data).shape == (8, 4, 3)


def test_what_cannot_be_decoded_is_a_value_error(monkeypatch: pytest.MonkeyPatch) -> None:
    png = images.encode_png(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    for data, reason in (
        (b"", "^is empty; expected an image that Pillow reads$"),
        (b"no image", "^is not an image: expected .*; it begins with b'no image'"),
        (b"%PDF-1.7", "^is a PDF; expected an image that Pillow reads"),
        (png[:20], "^is a PNG that is truncated"),
        (png[:2000], "^is a PNG that is truncated"),
        (png[:60] + bytes(40) + png[100:], "^is a PNG that is damaged"),
        (encode(Image.fromarray(COLOURS), "GIF")[:-60], "^is a GIF that is truncated"),
        (encode(Image.fromarray(COLOURS), "SGI")[:-60], "^is an image that is truncated"),
        (encode(Image.new("F", (2, 2), 0.5), "TIFF"), "floating-point of 32 bits; convert the image to unsigned 8"),
        (encode(Image.new("F", (2, 2), 0.5), "PPM"), "of the kind F; convert the image to grey, RGB or CMYK of 8 bits"),
    ):
        with pytest.raises(ValueError, match=reason):
            images.decode(data)


@pytest.mark.parametrize("kind", ["GIF", "ICO", "PPM", "JPEG2000", "TGA", "PCX", "SGI"])
def test_other_formats_are_read_for_datasets_alone(kind: str) -> None:
    data = encode(Image.new("RGB", (16, 16), (200, 40, 80)), kind)
    np.testing.assert_allclose(images.decode(data).astype(int), np.full((16, 16, 3), (200, 40, 80)), atol=2)
    with pytest.raises(ValueError, match=r"expected PNG, JPEG, WebP, BMP or TIFF"):
        images.read_picture(data)


def test_a_dataset_shows_on_white_what_cleaning_keeps_apart() -> None:
    rows = struct.pack(">BHHHH", 0, 40000, 65535, 40000, 0)
    data = png(2, 1, 16, 4, rows)  # 16-bit grey with alpha, which Pillow gives as RGBA
    picture = images.read_picture(data)
    assert (picture.pixels.shape, picture.alpha.tolist()) == ((1, 2, 1), [[255, 0]])
    assert images.decode(data).tolist() == [[[40000 >> 8], [255]]]
    for bits, values, row in ((16, (0x0102, 0x8000), b"\1\2\x80\0"), (2, (1, 3), b"\x70")):
        shown = images.decode(png(2, 1, bits, 0, b"\0" + row, (b"tRNS", struct.pack(">H", values[0]))))
        assert shown[0, 0, 0] == 255
        assert shown[0, 1, 0] == (128 if bits == 16 else 255)


@pytest.mark.parametrize("side", [9_500, 14_000])
def test_a_decompression_bomb_is_refused(side: int) -> None:
    data = encode(Image.new("1", (side, side)))
    assert len(data) < 100_000
    with pytest.raises(ValueError, match="pixels"):
        images.decode(data)


@pytest.mark.parametrize(
    "image", [np.zeros((3, 3), np.uint8), np.zeros((3, 3, 4), np.uint8), np.zeros((3, 3, 3), np.float32)]
)
def test_encode_refuses_other_arrays(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        images.encode_png(image)


def test_tensors_and_back() -> None:
    batch = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1).repeat(3, axis=3)
    batch[..., 1] = 255 - batch[..., 1]
    x = batch_of(batch, np.zeros(2, np.int64), (), "cpu").x
    assert (x.shape, x.dtype) == ((2, 3, 8, 16), torch.float32)
    assert (x.min().item(), x.max().item()) == (0.0, 1.0)
    np.testing.assert_array_equal(x[1, 1].numpy(), batch[1, :, :, 1].astype(np.float32) / 255)
    np.testing.assert_array_equal(images.to_uint8_nhwc(x), batch)


def test_to_uint8_rounds_and_clips() -> None:
    x = torch.tensor([-0.5, 0.49 / 255, 0.51 / 255, 254.6 / 255, 1.5]).reshape(1, 1, 1, 5)
    assert images.to_uint8_nhwc(x).reshape(-1).tolist() == [0, 0, 1, 255, 255]


def test_a_read_only_batch_is_copied() -> None:
    batch = np.zeros((1, 1, 1, 1), np.uint8)
    batch.setflags(write=False)
    assert batch_of(batch, np.zeros(1, np.int64), (), "cpu").x.sum().item() == 0


def grey_profile() -> bytes:
    header = bytearray(128)
    header[16:20], header[36:40] = b"GRAY", b"acsp"
    return bytes(header)


RGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
COLOURS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = COLOURS[:, :, :1]
LARGE = np.kron(COLOURS, np.ones((16, 16, 1), np.uint8))  # blocks, that JPEG keeps
ALPHA = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
ALPHA[0, :3] = 0  # the colours of what is not seen are kept too


def with_alpha(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.putalpha(Image.fromarray(ALPHA))
    return image


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, bits: int, colours: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG as Pillow does not write it."""
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, body) for name, body in chunks)


def tiff(bits: list[int], photometric: int, planes: list[bytes], *, planar: int = 1, sample_format: int = 1) -> bytes:
    """An uncompressed TIFF of one row of three pixels, as Pillow does not write it."""

    def directory(offsets: list[int]) -> bytes:
        tags = [
            *((256, [3]), (257, [1]), (258, bits), (259, [1]), (262, [photometric]), (273, offsets)),
            *((277, [len(bits)]), (278, [1]), (279, [len(plane) for plane in planes]), (284, [planar])),
            (339, [sample_format] * len(bits)),
        ]
        entries, values = b"", b""
        begin = 8 + 2 + 12 * len(tags) + 4
        for tag, numbers in tags:
            packed = struct.pack(f"<{len(numbers)}I", *numbers)
            field = packed if len(packed) <= 4 else struct.pack("<I", begin + len(values))
            values += b"" if len(packed) <= 4 else packed
            entries += struct.pack("<HHI", tag, 4, len(numbers)) + field
        return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + values

    begin = len(directory([0] * len(planes)))
    offsets = [begin + sum(len(plane) for plane in planes[:index]) for index in range(len(planes))]
    return directory(offsets) + b"".join(planes)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_pixels_are_read_as_they_are(kind: str) -> None:
    for pixels in (COLOURS, GREY):
        picture = images.read_picture(encode(Image.fromarray(pixels.squeeze()), kind))
        np.testing.assert_array_equal(picture.pixels, pixels)
        assert (picture.alpha, picture.notes, picture.icc, picture.exif) == (None, (), None, None)


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", LOSSLESS)]
)
def test_alpha_is_kept_apart(kind: str, options: dict[str, Any]) -> None:
    for pixels in (COLOURS, GREY) if kind != "WEBP" else (COLOURS,):
        picture = images.read_picture(encode(with_alpha(pixels), kind, **options))
        np.testing.assert_array_equal(picture.pixels, pixels)
        np.testing.assert_array_equal(picture.alpha, ALPHA)
        assert picture.notes == ()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_palettes_and_bilevel_are_looked_up(kind: str) -> None:
    image = Image.fromarray(COLOURS).quantize(7)
    picture = images.read_picture(encode(image, kind))
    np.testing.assert_array_equal(picture.pixels, np.array(image.convert("RGB")))
    assert (picture.alpha, picture.notes) == (None, ("palette converted to RGB",))
    bits = Image.fromarray(GREY[:, :, 0]).convert("1")
    picture = images.read_picture(encode(bits, kind))
    np.testing.assert_array_equal(picture.pixels[:, :, 0], np.array(bits.convert("L")))
    assert picture.notes == ("1-bit grey expanded to 8 bits",)


@pytest.mark.parametrize("transparency", [2, bytes([10, 20, 30])])
def test_the_transparency_of_a_palette_is_alpha(transparency: int | bytes) -> None:
    image = Image.fromarray(COLOURS).quantize(7)
    index = np.array(image)
    table = np.full(256, 255, np.uint8)
    table[2] = 0
    if isinstance(transparency, bytes):
        table[:3] = list(transparency)
    picture = images.read_picture(encode(image, transparency=transparency))
    np.testing.assert_array_equal(picture.pixels, np.array(image.convert("RGB")))
    np.testing.assert_array_equal(picture.alpha, table[index])


def test_a_transparent_colour_is_alpha() -> None:
    pixels = np.array([[[1, 2, 3], [1, 2, 4], [1, 2, 3]]], np.uint8)
    picture = images.read_picture(encode(Image.fromarray(pixels), transparency=(1, 2, 3)))
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert picture.alpha.tolist() == [[0, 255, 0]]
    picture = images.read_picture(encode(Image.fromarray(pixels[:, :, 2]), transparency=4))
    assert picture.alpha.tolist() == [[255, 0, 255]]
    assert images.read_picture(encode(Image.new("1", (2, 1)), transparency=0)).alpha.tolist() == [[0, 0]]
    two_bits = png(4, 1, 2, 0, b"\0\x1b", (b"tRNS", b"\0\1"))
    picture = images.read_picture(two_bits)
    assert picture.pixels[:, :, 0].tolist() == [[0, 85, 170, 255]]
    assert picture.alpha.tolist() == [[255, 0, 255, 255]]
    assert picture.notes == ("2-bit grey expanded to 8 bits",)


def test_16_bits_are_never_reduced_in_silence() -> None:
    values = np.array([[0x1234, 0x80FF, 0xFFFE]], ">u2")

    def rows(channels: int) -> bytes:
        return b"\0" + np.repeat(values[:, :, None], channels, axis=2).tobytes()

    grey = images.read_picture(png(3, 1, 16, 0, rows(1), (b"tRNS", b"\x80\xff")))
    assert grey.pixels[0, :, 0].tolist() == [0x12, 0x80, 0xFF]
    assert grey.alpha.tolist() == [[255, 0, 255]]
    assert grey.notes == ("16-bit grey scaled to 8 bits",)
    for colours, channels, shape in ((2, 3, (1, 3, 3)), (6, 4, (1, 3, 3)), (4, 2, (1, 3, 1))):
        picture = images.read_picture(png(3, 1, 16, colours, rows(channels)))
        assert picture.pixels.shape == shape
        assert picture.pixels[0, :, 0].tolist() == [0x12, 0x80, 0xFF]
        assert (picture.alpha is None) == (channels == 3)
        assert picture.notes == ("16 bits cut to 8 bits",)
    keyed = images.read_picture(png(3, 1, 16, 2, rows(3), (b"tRNS", b"\x80\xff" * 3)))
    assert keyed.alpha is None
    assert keyed.notes == ("16 bits cut to 8 bits", "transparent colour of 16 bits left out")
    little = values.astype("<u2")
    picture = images.read_picture(tiff([16] * 3, 2, [np.repeat(little, 3).tobytes()]))
    assert picture.pixels[0, :, 0].tolist() == [0x12, 0x80, 0xFF]
    assert picture.notes == ("16 bits cut to 8 bits",)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff([16] * 3, 2, [b"abcdef"] * 3, planar=2), "16 bits in separate planes; convert the image to 8 bits"),
        (tiff([16], 0, [b"abcdef"]), "16 bits with white as zero; convert"),
        (
            tiff([8], 1, [b"abc"], sample_format=2),
            "samples are signed of 8 bits; convert the image to unsigned 8 or 16",
        ),
        (tiff([16], 1, [b"abcdef"], sample_format=2), "samples are signed of 16 bits"),
        (tiff([12], 1, [b"abcdef"]), "samples are unsigned of 12 bits"),
        (tiff([32], 1, [b"abcd" * 3], sample_format=3), "samples are floating-point of 32 bits"),
        (tiff([32], 1, [b"abcd" * 3]), "samples are unsigned of 32 bits"),
        (tiff([8] * 3, 8, [b"abcdefghi"]), "its pixels are of the kind LAB; convert the image to grey, RGB or CMYK"),
    ],
)
def test_samples_that_would_be_read_wrong_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        images.read_picture(data)


def test_planes_of_8_bits_are_joined() -> None:
    picture = images.read_picture(tiff([8] * 3, 2, [b"abc", b"def", b"ghi"], planar=2))
    assert picture.pixels.tobytes() == b"adgbehcfi"


def test_cmyk_and_ycbcr_become_rgb() -> None:
    image = Image.fromarray(COLOURS)
    for kind in ("JPEG", "TIFF"):
        picture = images.read_picture(encode(image.convert("CMYK"), kind, quality=100))
        np.testing.assert_allclose(picture.pixels.astype(int), COLOURS, atol=8)
        assert picture.notes == ("CMYK converted to RGB",)
    picture = images.read_picture(encode(image.convert("YCbCr"), "TIFF"))
    np.testing.assert_allclose(picture.pixels.astype(int), COLOURS, atol=3)
    assert picture.notes == ("YCbCr converted to RGB",)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_leaves_the_kept_exif(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    if kind != "TIFF":
        exif[0x0100] = 12345  # a width, which would be that of the next TIFF
    exif[0x8769] = {0x9003: "2024:01:02 03:04:05", 0x927C: b"offsets into the old file"}
    exif[0x8825] = {1: "N"}
    image = Image.fromarray(LARGE)
    exact = {} if kind != "WEBP" else LOSSLESS
    data = encode(image, kind, exif=exif.tobytes(), quality=100, subsampling=0, **exact)
    picture = images.read_picture(data)
    turned = Image.fromarray(COLOURS)
    turned.getexif()[0x0112] = orientation
    expected = np.kron(np.array(ImageOps.exif_transpose(turned)), np.ones((16, 16, 1), int))
    np.testing.assert_allclose(picture.pixels.astype(int), expected, atol=6 if kind == "JPEG" else 0)
    assert picture.notes == (("orientation applied",) if orientation > 1 else ())
    kept = Image.Exif()
    kept.load(picture.exif)
    assert dict(kept.get_ifd(0x8769)) == {0x9003: "2024:01:02 03:04:05"}
    assert dict(kept.get_ifd(0x8825)) == {1: "N"}
    assert {tag: kept[tag] for tag in kept if tag not in (0x8769, 0x8825)} == {0x010F: "Maker"}


def test_of_several_frames_the_first_is_read() -> None:
    first, second = Image.fromarray(COLOURS), Image.new("RGB", (9, 6))
    for kind, options in (("PNG", {}), ("WEBP", LOSSLESS), ("TIFF", {}), ("MPO", {"quality": 100})):
        picture = images.read_picture(encode(first, kind, save_all=True, append_images=[second], **options))
        assert np.abs(picture.pixels.astype(int) - COLOURS).mean() < (60 if kind == "MPO" else 1e-9)
        assert picture.notes == (f"first of {'2' if kind in ('PNG', 'WEBP') else 'several'} frames",)


def test_a_profile_of_another_colour_space_is_left_out() -> None:
    rgb, grey = Image.fromarray(COLOURS), Image.fromarray(GREY[:, :, 0])

    def read(image: Image.Image, profile: bytes, kind: str = "PNG") -> tuple[bytes | None, tuple[str, ...]]:
        picture = images.read_picture(encode(image, kind, icc_profile=profile))
        return picture.icc, picture.notes

    for kind in ("PNG", "JPEG", "TIFF", "WEBP"):
        assert read(rgb, RGB_PROFILE, kind) == (RGB_PROFILE, ())
    assert read(grey, grey_profile()) == (grey_profile(), ())
    assert read(grey, RGB_PROFILE) == (None, ("colour profile for RGB left out: the pixels are grey",))
    assert read(rgb, grey_profile()) == (None, ("colour profile for GRAY left out: the pixels are RGB",))
    assert read(rgb.quantize(5), RGB_PROFILE) == (RGB_PROFILE, ("palette converted to RGB",))
    cmyk = bytearray(grey_profile())
    cmyk[16:20] = b"CMYK"
    notes = ("CMYK converted to RGB", "colour profile for CMYK left out: the pixels are RGB")
    assert read(rgb.convert("CMYK"), bytes(cmyk), "JPEG") == (None, notes)
    assert read(rgb, b"no profile") == (None, ("unreadable colour profile left out",))
    huge = RGB_PROFILE + bytes(images.MAX_PROFILE)
    assert read(rgb, huge, "TIFF") == (None, (f"colour profile of {len(huge)} bytes left out",))


@pytest.mark.parametrize("format", images.FORMATS)
@pytest.mark.parametrize("pixels", [LARGE, LARGE[:, :, :1]], ids=["rgb", "grey"])
@pytest.mark.parametrize("alpha", [None, np.kron(ALPHA, np.ones((16, 16), np.uint8))], ids=["opaque", "alpha"])
def test_what_is_written_is_read_again(format: str, pixels: np.ndarray, alpha: np.ndarray | None) -> None:
    kind = images.FORMATS[format]
    profile = RGB_PROFILE if pixels.shape[2] == 3 else grey_profile()
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x8769] = {0x9003: "2024:01:02 03:04:05"}
    picture = images.Picture(pixels=pixels, alpha=alpha, icc=profile, exif=exif.tobytes())
    data, notes = images.encode(picture, format, quality=100, keep_exif=True)
    assert (data, notes) == images.encode(picture, format, quality=100, keep_exif=True)
    again = images.read_picture(data)
    widened = format == "webp" and pixels.shape[2] == 1
    expected = np.repeat(pixels, 3, axis=2) if widened else pixels
    if alpha is not None and not kind.alpha:
        opacity = alpha[:, :, None] / 255
        expected = np.rint(expected * opacity + 255 * (1 - opacity))
    np.testing.assert_allclose(again.pixels.astype(int), expected, atol=8 if format == "jpeg" else 1e-9)
    kept = alpha if kind.alpha else None
    assert (again.alpha is None) == (kept is None)
    if kept is not None:
        np.testing.assert_array_equal(again.alpha, kept)
    assert again.icc == (profile if kind.icc and not widened else None)
    assert again.exif == (picture.exif if kind.exif else None)
    assert again.notes == ()
    assert notes == (
        *(("grey written as RGB for webp",) if widened else ()),
        *((f"colour profile left out for {format}",) if widened or not kind.icc else ()),
        *((f"alpha composited on white for {format}",) if alpha is not None and not kind.alpha else ()),
        *((f"EXIF of {len(exif.tobytes())} bytes left out for {format}",) if not kind.exif else ()),
    )
    assert images.read_picture(images.encode(picture, format)[0]).exif is None
    assert data == images.encode(picture, format, quality=5, keep_exif=True)[0] or format in ("jpeg", "webp")


def test_jpeg_leaves_out_exif_that_it_cannot_hold() -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 70_000
    data, notes = images.encode(images.Picture(pixels=COLOURS, exif=exif.tobytes()), "jpeg", keep_exif=True)
    assert images.read_picture(data).exif is None
    assert notes == (f"EXIF of {len(exif.tobytes())} bytes left out for jpeg",)


@pytest.mark.parametrize(
    ("shape", "format", "quality", "reason"),
    [
        ((2, 2, 3), "gif", 90, "unknown format 'gif': known are png, jpeg, webp, bmp, tiff"),
        ((2, 2, 3), "jpeg", 0, r"quality must be in \[1, 100\]; got 0"),
        ((2, 2, 3), "png", 101, r"quality must be in \[1, 100\]; got 101"),
        ((1, 16_384, 1), "webp", 90, "webp holds at most 16383 pixels a side; got 16384x1: write png instead"),
        ((65_501, 1, 1), "jpeg", 90, "jpeg holds at most 65500 pixels a side; got 1x65501: write png instead"),
        ((2, 2, 4), "png", 90, "expected"),
    ],
)
def test_what_cannot_be_written_is_refused(shape: tuple[int, ...], format: str, quality: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        images.encode(images.Picture(pixels=np.zeros(shape, np.uint8)), format, quality=quality)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "^is empty; expected PNG, JPEG, WebP, BMP or TIFF$"),
        (encode(Image.new("L", (2, 2)), "GIF"), "^is a GIF; expected PNG"),
        (encode(Image.new("L", (16, 16)), "ICO"), "^is an ICO; expected PNG"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "^is a HEIC or AVIF; expected"),
        (b"8BPS\0\1", "^is a PSD; expected"),
        (b"%PDF-1.7", "^is a PDF; expected"),
        (b"PK\3\4", "^is a ZIP archive; expected"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "^is an SVG; expected"),
        (b"<!DOCTYPE html><html>", "^is an HTML page; expected"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "^is an XML file; expected"),
        (b"\0" * 40, r"^is not an image: expected .*; it begins with b'\\x00"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "^is not an image"),
        (b"B", "^is not an image"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        images.read_picture(data)
    assert images.pixels_of(data) == 0


def samples() -> dict[str, bytes]:
    """A file of each format and layout, with all the metadata that is parsed."""
    pixels = np.kron(COLOURS, np.ones((4, 4, 1), np.uint8))
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    exif[0x8769] = {0x9003: "2024:01:02 03:04:05"}
    about = {"icc_profile": RGB_PROFILE, "exif": exif.tobytes()}
    more = {"save_all": True, "append_images": [Image.new("RGB", image.size)]}
    deep = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    return {
        **{kind: encode(image, kind, **about) for kind in ("PNG", "JPEG", "WEBP", "TIFF")},
        **{f"{kind} frames": encode(image, kind, **more) for kind in ("PNG", "WEBP", "TIFF", "MPO")},
        **{f"{kind} palette": encode(image.quantize(9), kind) for kind in ("PNG", "BMP", "TIFF")},
        **{f"TIFF {name}": encode(image, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "packbits")},
        "PNG 16": encode(deep),
        "TIFF 16": encode(deep, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF fax": encode(image.convert("1"), "TIFF", compression="group4"),
        "JPEG progressive": encode(image, "JPEG", progressive=True),
        "JPEG CMYK": encode(image.convert("CMYK"), "JPEG"),
        "WEBP lossless": encode(image.convert("RGBA"), "WEBP", lossless=True),
        "BMP": encode(image, "BMP"),
    }


SAMPLES = samples()


def spoilt(data: bytes, draws: np.random.Generator) -> bytes:
    """Cut off, with bits flipped, with a header overwritten, or with a piece replaced by one of another length."""
    spoilt = bytearray(data)
    way, place = draws.integers(4), draws.integers(len(data))
    if way == 0:
        return data[:place]
    if way == 1:
        for place in draws.integers(len(data), size=4):
            spoilt[place] ^= 1 << draws.integers(8)
    elif way == 2:
        for place in draws.integers(min(len(data), 200), size=4):
            spoilt[place] = draws.integers(256)
    else:
        spoilt[place : place + draws.integers(50)] = draws.bytes(draws.integers(50))
    return bytes(spoilt)


def checksums_mended(data: bytes) -> bytes:
    """A spoilt PNG whose chunks look whole."""
    mended, place = data[:8], 8
    while place + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        mended += chunk(name, data[place + 8 : place + 8 + length])
        place += 12 + length
    return mended


@pytest.mark.parametrize("name", SAMPLES)
def test_spoilt_files_are_refused_or_read(name: str) -> None:
    draws = np.random.default_rng(0)
    whole = images.read_picture(SAMPLES[name])
    assert images.pixels_of(SAMPLES[name]) == whole.pixels[:, :, 0].size
    reasons = []
    for attempt in range(60):
        data = spoilt(SAMPLES[name], draws)
        data = checksums_mended(data) if name.startswith("PNG") and attempt % 2 else data
        images.pixels_of(data)
        try:
            picture = images.read_picture(data, max_pixels=1 << 20)
        except ValueError as error:
            reasons.append(str(error))
            continue
        assert picture.pixels.dtype == np.uint8
        for format in images.FORMATS:
            images.read_picture(images.encode(picture, format, keep_exif=True)[0])
    assert len(reasons) >= 10
    assert all(reason and " object at 0x" not in reason for reason in reasons)  # the same file gives the same reason


@pytest.mark.parametrize("name", SAMPLES)
def test_a_header_tells_the_shape_of_what_is_decoded(name: str) -> None:
    data = SAMPLES[name]
    assert images.shape_by_header(data) in (images.decode(data).shape, None)
    assert images.shape_by_header(data) or name == "WEBP"  # whose EXIF stands behind the pixels
    if not name.startswith("TIFF"):  # whose directory may lie behind the pixels
        assert images.shape_by_header(data[:-4]) == images.shape_by_header(data)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_header_tells_the_shape_of_a_turned_image(format: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encode(Image.fromarray(COLOURS), format, exif=exif)
    told = images.shape_by_header(data)
    assert told in (images.decode(data).shape, None)
    assert told or format == "WEBP"


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in ("MPO frames", "TIFF frames")])
def test_a_file_that_is_cut_off_is_refused(name: str) -> None:
    data = SAMPLES[name]
    for length in (len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(ValueError, match=r"truncated|damaged"):
            images.read_picture(data[:length])


def test_a_png_with_a_flipped_bit_is_refused() -> None:
    """Stored without compression, so that any bits make pixels."""
    data = bytearray(encode(Image.fromarray(COLOURS), compress_level=0))
    data[data.index(b"IDAT") + 60] ^= 1
    with pytest.raises(ValueError, match=r"the chunk b'IDAT' does not match its checksum"):
        images.read_picture(bytes(data))


def test_a_doubtful_exif_does_not_cost_the_image() -> None:
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0nonsense"):
        picture = images.read_picture(encode(Image.fromarray(COLOURS), "WEBP", exif=exif, **LOSSLESS))
        np.testing.assert_array_equal(picture.pixels, COLOURS)
        assert picture.exif is None
        assert picture.notes in ((), ("unreadable EXIF left out",))


def test_doubtful_files_are_read_in_threads_without_warnings() -> None:
    """Each thread of a pool would otherwise restore the filters that another had set."""
    jpeg = encode(Image.fromarray(COLOURS), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(range(64)))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(images.read_picture, [jpeg] * 100))
    assert {picture.pixels.tobytes() for picture in pictures} == {images.read_picture(jpeg).pixels.tobytes()}
    assert warnings.filters == before


def test_the_pixel_budget_is_that_of_the_call() -> None:
    for data in SAMPLES.values():
        pixels = images.pixels_of(data)
        assert images.read_picture(data, max_pixels=pixels)
        with pytest.raises(ValueError, match=f"pixels are more than the {pixels - 1} allowed"):
            images.read_picture(data, max_pixels=pixels - 1)


def bombs() -> dict[str, bytes]:
    zeros = zlib.compress(bytes(100_000_000))
    webp = bytearray(encode(Image.new("RGBA", (8, 8)), "WEBP", icc_profile=RGB_PROFILE))
    webp[24:30] = b"\xff\x3f\0\xff\x3f\0"
    jpeg = bytearray(encode(Image.new("RGB", (8, 8)), "JPEG"))
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = b"\xff\xff\xff\xff"
    bmp = bytearray(encode(Image.new("RGB", (8, 8)), "BMP"))
    bmp[18:26] = struct.pack("<ii", 50_000, 50_000)
    return {
        "png": png(50_000, 50_000, 8, 2, b""),
        "webp": bytes(webp),
        "jpeg": bytes(jpeg),
        "bmp": bytes(bmp),
        "tiff": encode(Image.new("1", (9_500, 9_500)), "TIFF", compression="group4"),
        "profile": png(1, 1, 8, 0, b"\0\0", (b"iCCP", b"name\0\0" + zeros)),
        "text": png(1, 1, 8, 0, b"\0\0", (b"zTXt", b"name\0\0" + zeros)),
        "international text": png(1, 1, 8, 0, b"\0\0", (b"iTXt", b"name\0\1\0\0\0" + zeros)),
    }


IN_LITTLE_MEMORY = """
import re, resource, sys
from raypurify import images

used = int(re.search(r"VmSize:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (48 << 20), used + (48 << 20)))
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        data = file.read()
    images.pixels_of(data)
    try:
        images.read_picture(data)
    except ValueError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory by /proc and RLIMIT_AS")
def test_bombs_are_refused_in_little_memory(tmp_path: Path) -> None:
    paths = []
    for name, data in bombs().items():
        assert len(data) < 400_000
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
    run = subprocess.run([sys.executable, "-c", IN_LITTLE_MEMORY, *paths], capture_output=True, text=True, check=True)
    reasons = run.stdout.splitlines()
    assert len(reasons) == len(paths), run.stderr
    assert all("pixels are more than the" in reason for reason in reasons[:5])
    assert all("decompression bomb" in reason for reason in reasons[5:])
    assert not run.stderr


@pytest.mark.parametrize(
    ("name", "known"), [("a.PNG", True), ("b/c.jpeg", True), ("d.tif", True), ("png", False), ("e.gif", False)]
)
def test_extensions_of_what_is_read(name: str, known: bool) -> None:
    assert images.has_known_extension(name) == known
    assert images.is_named_as_image(name) == (known or name == "e.gif")


@pytest.mark.parametrize(
    ("chunks", "notes"),
    [
        ({b"gAMA": struct.pack(">I", 100_000)}, ("colour coding (gAMA) left out",)),
        ({b"gAMA": struct.pack(">I", 45455)}, ()),
        ({b"gAMA": struct.pack(">I", 100_000), b"sRGB": b"\0"}, ()),
        ({b"cICP": bytes((9, 16, 0, 1)), b"sRGB": b"\0"}, ("colour coding (cICP) left out",)),
    ],
)
def test_what_a_png_says_of_its_colours_and_is_left_out_is_noted(
    chunks: dict[bytes, bytes], notes: tuple[str, ...]
) -> None:
    png = images.encode_png(np.zeros((4, 4, 3), np.uint8))
    told = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )
    assert images.read_picture(png[:33] + told + png[33:]).notes == notes
