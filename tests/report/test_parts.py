"""The page's small parts: numbers, pictures, curves."""

from __future__ import annotations

import base64
import io
import itertools
import re

import numpy as np
import pytest
from PIL import Image

from raypurify.plugins import shown
from raypurify.report import figures, formats, images


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.3, "0.3"),
        (0.2, "0.2"),
        (8 / 255, "8/255"),
        (np.float32(8 / 255), "8/255"),
        (0.12345, "0.1235"),
        (1e-5, "1e-05"),
    ],
)
def test_a_number_is_written_as_people_do(value: float, text: str) -> None:
    assert shown(float(value)) == text


def test_balls_name_each_norm_once() -> None:
    names = [formats.ball(*given) for given in [("linf", 0.1), (None, None), ("linf", 0.3), ("l2", 2.0), ("linf", 0.1)]]
    assert formats.balls(names).replace("\u00a0", " ") == "L∞ ε = 0.1, 0.3; minimal distance; L2 ε = 2"


@pytest.mark.parametrize("end", [0.0, 0.5, 1.0])
def test_names_of_lines_that_end_together_are_apart(end: float) -> None:
    points = [figures.Point(eps=eps, adversarial=end, purified=end, adaptive=end) for eps in (0.0, 0.1)]
    svg = figures.security_curve(points, norm="L∞", name="x")
    places = [float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>(?:no defense|purified|adaptive)</text>', svg)]
    assert len(places) == 3
    assert min(abs(a - b) for a, b in itertools.combinations(places, 2)) > 9, "pixels"


def test_numbers_without_a_value_are_not_invented() -> None:
    assert [formats.percent(value) for value in (None, float("nan"), 0.0, 1.0)] == ["–", "–", "0.00", "100.00"]
    assert [formats.decimal(value) for value in (float("inf"), -1.5)] == ["∞", "−1.50"]


@pytest.mark.parametrize(("largest", "gain"), [(0.3, 1.6), (0.5, 1.0), (8 / 255, 15.0), (1.0, 0.5), (0.0, 1.0)])
def test_amplification_fills_the_range_without_clipping(largest: float, gain: float) -> None:
    assert images.amplification(largest) == pytest.approx(gain)
    assert largest * images.amplification(largest) <= 0.5


@pytest.mark.parametrize("channels", [1, 3])
def test_png_keeps_the_pixels(channels: int) -> None:
    pixels = np.random.default_rng(0).random((9, 7, channels), dtype=np.float32)
    data = base64.b64decode(images.png(pixels).removeprefix("data:image/png;base64,"))
    read = np.asarray(Image.open(io.BytesIO(data))).reshape(pixels.shape)
    assert np.array_equal(read, np.rint(pixels * 255))


def test_png_of_a_large_image_is_shrunk() -> None:
    data = base64.b64decode(images.png(np.zeros((400, 800, 3), np.float32)).partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (256, 128)


def test_smoothing_keeps_a_straight_line_but_for_its_ends() -> None:
    line = np.arange(500, dtype=np.float64)
    smoothed = figures.smooth(line)
    assert smoothed[10:-10] == pytest.approx(line[10:-10])
    assert smoothed[0] == pytest.approx(5.0)
    assert smoothed[-1] == pytest.approx(494.0)


def test_smoothing_of_a_short_curve_is_the_curve() -> None:
    values = np.array([3.0, 1.0, 2.0])
    assert figures.smooth(values) == pytest.approx(values)
