"""raypurify.metrics against scikit-image, one image at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torch.nn import functional as F

from raypurify.metrics import PSNR_CAP, PSNR_EQ16_OFFSET, l2, linf, psnr, ssim, wilson_interval

N = 4
SHAPES = [(1, 11, 11), (1, 28, 28), (3, 32, 32), (3, 17, 40), (1, 40, 12), (3, 75, 11), (1, 150, 203)]  # C, H, W


def uniform(shape: tuple[int, ...], low: float = 0.0, high: float = 1.0, *, seed: int = 0) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def smooth(shape: tuple[int, ...], *, seed: int = 0) -> Tensor:
    coarse = uniform((shape[0], shape[1], 5, 5), seed=seed)
    return F.interpolate(coarse, shape[2:], mode="bicubic").clamp(0, 1)


def strokes(shape: tuple[int, ...], *, seed: int = 0) -> Tensor:
    """Black and white with soft edges, mostly black, like a digit."""
    return (6 * smooth(shape, seed=seed) - 4).clamp(0, 1)


def noisy(x: Tensor, epsilon: float) -> Tensor:
    return (x + epsilon * uniform(tuple(x.shape), -1, 1, seed=99).sign()).clamp(0, 1)


def constants(shape: tuple[int, ...], *values: float) -> Tensor:
    return torch.tensor(values).reshape(-1, 1, 1, 1).expand(shape)


PAIRS: dict[str, Callable[[tuple[int, ...]], tuple[Tensor, Tensor]]] = {
    "random": lambda shape: (uniform(shape), uniform(shape, seed=1)),
    "smooth": lambda shape: (smooth(shape), smooth(shape, seed=1)),
    "adversarial 0.3": lambda shape: (strokes(shape), noisy(strokes(shape), 0.3)),
    "adversarial 8/255": lambda shape: (smooth(shape), noisy(smooth(shape), 8 / 255)),
    "nearly identical": lambda shape: (uniform(shape), noisy(uniform(shape), 1e-3)),
    "negative": lambda shape: (smooth(shape), 1 - smooth(shape)),
    "constant": lambda shape: (constants(shape, 0, 1, 0.3, 0.9), constants(shape, 1, 0.97, 0.9, 0.91)),
    "nearly constant": lambda shape: (uniform(shape, 0.99, 1), uniform(shape, 0.99, 1, seed=1)),
    "dark against bright": lambda shape: (uniform(shape, 0.4, 0.41), uniform(shape, 0.98, 1, seed=1)),
    "half and half": lambda shape: (
        (torch.arange(shape[-1]) < shape[-1] // 2).float().expand(shape),
        0.3 + 0.6 * (torch.arange(shape[-1]) >= shape[-1] // 2).float().expand(shape),
    ),
}


def oracle_ssim(a: Tensor, b: Tensor) -> Tensor:
    """In float64: scikit-image's own float32 has the rounding that is tested for."""
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    pairs = zip(a.double().numpy(), b.double().numpy(), strict=True)
    rows = [structural_similarity(x, y, channel_axis=0, **options) for x, y in pairs]
    return torch.tensor(np.array(rows)).float()


def oracle_psnr(a: Tensor, b: Tensor) -> Tensor:
    pairs = zip(a.double().numpy(), b.double().numpy(), strict=True)
    return torch.tensor([peak_signal_noise_ratio(x, y, data_range=1) for x, y in pairs]).float()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("pair", PAIRS)
def test_equals_scikit_image(pair: str, shape: tuple[int, int, int]) -> None:
    a, b = PAIRS[pair]((N, *shape))
    assert not torch.equal(a, b)
    for ours, oracle in ((ssim(a, b), oracle_ssim(a, b)), (psnr(a, b), oracle_psnr(a, b))):
        assert ours.shape == (N,)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, oracle, rtol=0, atol=1e-4)


@pytest.mark.parametrize("pair", ["constant", "nearly constant", "dark against bright"])
def test_ssim_of_flat_images_does_not_cancel(pair: str) -> None:
    a, b = PAIRS[pair]((N, 3, 32, 32))
    torch.testing.assert_close(ssim(a, b), oracle_ssim(a, b), rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_identical_images_have_the_cap_and_ssim_one(value: float) -> None:
    for a in (torch.full((2, 1, 28, 28), value), noisy(torch.full((2, 1, 28, 28), value), 0.2)):
        assert psnr(a, a.clone()).tolist() == [PSNR_CAP, PSNR_CAP]
        assert ssim(a, a.clone()).tolist() == [1.0, 1.0]
        assert linf(a, a.clone()).tolist() == [0.0, 0.0]
        assert l2(a, a.clone()).tolist() == [0.0, 0.0]


def test_psnr_is_capped_above_and_exact_below() -> None:
    a = torch.zeros(2, 1, 8, 8)
    b = torch.full_like(a, 0.1)
    b[1] = 1e-6  # 120 dB
    assert psnr(a, b).tolist() == pytest.approx([20.0, 100.0])
    assert abs(PSNR_EQ16_OFFSET - 48.1308) < 1e-4


def test_linf_and_l2_of_a_known_difference() -> None:
    a = torch.zeros(2, 3, 5, 4)
    b = a.clone()
    b[0, 1, 2, 3], b[0, 2, 0, 0], b[1, 0, 0, 1] = 0.3, 0.4, 1.0
    assert linf(a, b).tolist() == pytest.approx([0.4, 1.0])
    assert l2(b, a).tolist() == pytest.approx([0.5, 1.0])


@pytest.mark.parametrize("side", [(10, 28), (28, 10), (1, 1)])
def test_ssim_is_nan_where_no_window_fits(side: tuple[int, int]) -> None:
    a = uniform((3, 1, *side))
    similarity = ssim(a, a)
    assert similarity.shape == (3,)
    assert similarity.dtype == torch.float32
    assert similarity.isnan().all()


@pytest.mark.parametrize("metric", [psnr, ssim, linf, l2])
def test_a_value_does_not_depend_on_the_batch(metric: Callable[[Tensor, Tensor], Tensor]) -> None:
    a = smooth((700, 1, 28, 28))  # several of the chunks that ssim makes
    b = noisy(a, 0.3)
    alone = torch.cat([metric(a[i : i + 1], b[i : i + 1]) for i in (0, 250, 699)])
    torch.testing.assert_close(metric(a, b)[[0, 250, 699]], alone, rtol=1e-6, atol=1e-6)
    assert metric(a[:0], b[:0]).shape == (0,)


def test_ssim_keeps_float32_under_autocast_and_takes_half_precision_images() -> None:
    a = smooth((N, 3, 32, 32))
    b = noisy(a, 8 / 255)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ssim(a, b), oracle_ssim(a, b), rtol=0, atol=1e-4)
        torch.testing.assert_close(psnr(a, b), oracle_psnr(a, b), rtol=0, atol=1e-4)
    half = b.bfloat16()
    torch.testing.assert_close(ssim(a, half), oracle_ssim(a, half.float()), rtol=0, atol=1e-4)


def test_ssim_takes_any_memory_layout() -> None:
    a = smooth((N, 3, 32, 32))
    b = noisy(a, 0.1)
    last = ssim(a.contiguous(memory_format=torch.channels_last), b.flip(-1).flip(-1))
    torch.testing.assert_close(last, ssim(a, b), rtol=0, atol=1e-6)


@pytest.mark.parametrize("metric", [psnr, ssim, linf, l2])
def test_refuses_what_is_not_two_batches_of_float_images(metric: Callable[[Tensor, Tensor], Tensor]) -> None:
    a = torch.zeros(2, 1, 28, 28)
    with pytest.raises(ValueError, match=r"\(2, 1, 28, 28\) and \(1, 1, 28, 28\)"):
        metric(a, a[:1])
    with pytest.raises(ValueError, match=r"\(N, C, H, W\)"):
        metric(a[0], a[0])
    with pytest.raises(ValueError, match="uint8"):
        metric(a, a.to(torch.uint8))


@pytest.mark.parametrize(
    ("successes", "n", "bounds"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_interval_is_the_published_one(successes: int, n: int, bounds: tuple[float, float]) -> None:
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", Table I, method 3."""
    assert wilson_interval(successes, n) == pytest.approx(bounds, abs=5e-5)
    low, high = wilson_interval(n - successes, n)
    assert (1 - high, 1 - low) == pytest.approx(bounds, abs=5e-5)
    assert 0 <= low < high <= 1


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (5, 4), (-1, 4)])
def test_wilson_interval_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got {n if n == 0 else successes}"):
        wilson_interval(successes, n)
