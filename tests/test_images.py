from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from raypurify import images
from raypurify.training import batch_of

RNG = np.random.default_rng(0)


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
    for data in (b"", b"no image", png[:20], png[:2000], png[:60] + bytes(40) + png[100:]):
        with pytest.raises(ValueError, match="cannot be decoded"):
            images.decode(data)
    for mode, value in (("F", 0.5), ("I", 70000)):
        with pytest.raises(ValueError, match="convert the image to 8 or 16 bits"):
            images.decode(encode(Image.new(mode, (2, 2), value), "TIFF"))


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
