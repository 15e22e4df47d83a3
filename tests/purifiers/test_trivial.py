"""The trivial purifiers: one table for what they share, then each against an independent computation."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor, nn
from torch.nn import functional as F

from raypurify import plugins
from raypurify.plugins import Spec

TRIVIAL = {  # name: whether a gradient passes through
    "identity": True,
    "rounding": False,
    "threshold": False,
    "mean_filter": True,
    "median_filter": True,
    "jpeg": False,
    "total_variation": False,
}
SHAPES = [(3, 1, 28, 28), (2, 3, 32, 32), (2, 3, 17, 40), (1, 1, 1, 1)]


def purifier(name: str, **params: Any) -> nn.Module:
    built = plugins.build("raypurify.purifiers", Spec(name=name, params=params))
    assert isinstance(built, nn.Module)
    return built.eval()


def images(shape: tuple[int, ...] = (3, 3, 16, 20)) -> Tensor:
    """Whole range, the ends of it included."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    return x.clamp(0, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", TRIVIAL)
def test_maps_images_to_images_and_leaves_the_input_alone(name: str, shape: tuple[int, ...]) -> None:
    x = images(shape)
    kept = x.clone()
    pure = purifier(name)(x)
    assert pure.shape == x.shape
    assert pure.dtype == torch.float32
    assert pure.device == x.device
    assert pure.min() >= 0
    assert pure.max() <= 1
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", TRIVIAL)
def test_is_deterministic_image_by_image_and_without_weights(name: str) -> None:
    x = images()
    purify = purifier(name)
    pure = purify(x)
    assert torch.equal(purify(x), pure)
    assert torch.equal(torch.cat([purify(x[i : i + 1]) for i in range(len(x))]), pure)
    assert not purify.state_dict()


@pytest.mark.parametrize("name", TRIVIAL)
def test_white_and_black_images_stay(name: str) -> None:
    x = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    assert torch.equal(purifier(name)(x), x)


@pytest.mark.parametrize(("name", "differentiable"), TRIVIAL.items())
def test_says_whether_a_gradient_passes(name: str, differentiable: bool) -> None:
    purify = purifier(name)
    x = images().requires_grad_()
    pure = purify(x)
    assert bool(purify.differentiable) == differentiable
    assert pure.requires_grad is differentiable
    if differentiable:
        (gradient,) = torch.autograd.grad(pure.sum(), x)
        assert gradient.sum() == pytest.approx(x.numel(), rel=1e-5)


def test_identity_returns_its_input() -> None:
    assert torch.equal(purifier("identity")(images()), images())


def test_rounding_is_what_a_saved_image_keeps() -> None:
    x = images()
    saved = np.rint(x.double().numpy() * 255).astype(np.uint8)
    torch.testing.assert_close(purifier("rounding")(x), torch.from_numpy(saved / 255).float())
    assert purifier("rounding", bits=1)(x).unique().tolist() == [0.0, 1.0]
    assert len(purifier("rounding", bits=2)(x).unique()) == 4


def test_threshold_separates_at_its_level() -> None:
    x = torch.tensor([0.0, 0.499, 0.5, 0.8, 1.0]).reshape(1, 1, 1, 5)
    assert purifier("threshold")(x).flatten().tolist() == [0, 0, 1, 1, 1]
    assert purifier("threshold", level=0.9)(x).flatten().tolist() == [0, 0, 0, 0, 1]


def test_mean_filter_equals_scipy() -> None:
    x = images()
    expected = ndimage.uniform_filter(x.double().numpy(), size=(1, 1, 3, 3), mode="nearest")
    torch.testing.assert_close(purifier("mean_filter")(x), torch.from_numpy(expected).float())


def test_median_filter_equals_scipy() -> None:
    x = images((4, 3, 40, 31))
    expected = ndimage.median_filter(x.numpy(), size=(1, 1, 3, 3), mode="nearest")
    assert torch.equal(purifier("median_filter")(x), torch.from_numpy(expected))


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_what_a_file_keeps(channels: int) -> None:
    x = F.interpolate(images((2, channels, 5, 5)), (24, 32), mode="bilinear")
    file = io.BytesIO()
    pixels = np.rint(x[1].permute(1, 2, 0).double().numpy() * 255).astype(np.uint8)
    Image.fromarray(pixels.squeeze()).save(file, format="JPEG", quality=75)
    expected = np.asarray(Image.open(file)).reshape(24, 32, channels).transpose(2, 0, 1) / 255
    torch.testing.assert_close(purifier("jpeg")(x)[1], torch.from_numpy(expected).float())


def test_jpeg_loses_less_at_higher_quality() -> None:
    x = F.interpolate(images((2, 3, 5, 5)), (32, 32), mode="bilinear")
    errors = [(purifier("jpeg", quality=quality)(x) - x).square().mean() for quality in (5, 40, 75, 100)]
    assert errors[0] > errors[1] > errors[2] > errors[3] > 0
    assert errors[3] < 1e-3


def test_jpeg_refuses_other_channels() -> None:
    with pytest.raises(ValueError, match=r"1 or 3 channels, got 2 .*\(3, 2, 8, 8\)"):
        purifier("jpeg")(images((3, 2, 8, 8)))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        *(("rounding", {"bits": bits}) for bits in (0, 17, 7.5, True, "8")),
        *(("threshold", {"level": level}) for level in (0, 1.1, -1, float("nan"), "half")),
        *(("jpeg", {"quality": quality}) for quality in (0, 101, 75.0, True, "high")),
    ],
)
def test_refuses_a_bad_parameter_by_name_and_value(name: str, params: dict[str, Any]) -> None:
    ((key, value),) = params.items()
    with pytest.raises(ValueError, match=rf"{key}( must be|: expected) .* got {value!r}"):
        purifier(name, **params)


def test_refuses_an_unknown_parameter() -> None:
    with pytest.raises(ValueError, match=r"jpeg,sharpness=2.*sharpness"):
        purifier("jpeg", sharpness=2)


def test_total_variation_equals_scikit_image() -> None:
    x = images()
    expected = [denoise_tv_chambolle(image, weight=0.1, max_num_iter=20, channel_axis=0) for image in x.numpy()]
    pure = purifier("total_variation", weight=0.1, max_iterations=20)(x)
    torch.testing.assert_close(pure, torch.from_numpy(np.stack(expected)).clamp(0, 1))
    with pytest.raises(ValueError, match="weight must be above 0; got 0"):
        purifier("total_variation", weight=0)
    with pytest.raises(ValueError, match="max_iterations must be at least 1; got 0"):
        purifier("total_variation", max_iterations=0)
