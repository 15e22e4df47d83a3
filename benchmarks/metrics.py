"""PSNR and SSIM of a batch, against scikit-image one image at a time."""

from __future__ import annotations

import numpy as np
import torch
from _harness import arguments, median_rate, report, result, seconds_in_turns
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torch.nn import functional as F

from raypurify.metrics import psnr, ssim

TOLERANCE = 1e-4
BATCH = 256


def images(n: int, channels: int, side: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Smooth images with flat black and white parts, and the same under noise of ±epsilon."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, channels, 7, 7, generator=generator)
    clean = (3 * F.interpolate(coarse, (side, side), mode="bicubic") - 1).clamp(0, 1)
    sign = torch.randint(0, 2, clean.shape, generator=generator) * 2 - 1
    return clean, (clean + epsilon * sign).clamp(0, 1)


def batched(a: Tensor, b: Tensor) -> Tensor:
    """(n, 2): PSNR and SSIM."""
    pairs = zip(torch.split(a, BATCH), torch.split(b, BATCH), strict=True)
    return torch.cat([torch.stack([psnr(x, y), ssim(x, y)], dim=1) for x, y in pairs])


def one_at_a_time(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """The same of (n, H, W, C)."""
    rows = []
    for x, y in zip(a, b, strict=True):
        similarity = structural_similarity(
            x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=-1
        )
        rows.append((peak_signal_noise_ratio(x, y, data_range=1), similarity))
    return np.array(rows)


def compare(name: str, channels: int, side: int, epsilon: float, *, quick: bool) -> dict[str, object]:
    n, n_baseline, turns = (8192, 128, 5) if quick else (8192, 1024, 9)
    a, b = images(n, channels, side, epsilon)
    a_rows, b_rows = (x[:n_baseline].permute(0, 2, 3, 1).contiguous().numpy() for x in (a, b))
    difference = float(np.abs(batched(a[:n_baseline], b[:n_baseline]).numpy() - one_at_a_time(a_rows, b_rows)).max())
    assert difference <= TOLERANCE, f"{name}: differs from scikit-image by {difference}, more than {TOLERANCE}"
    seconds = seconds_in_turns(
        {"ours": lambda: batched(a, b), "scikit-image": lambda: one_at_a_time(a_rows, b_rows)}, turns
    )
    ours = median_rate(n, seconds["ours"])
    baseline = median_rate(n_baseline, seconds["scikit-image"])
    return result(name, "images/s", ours, baseline, "scikit-image", n, n_baseline=n_baseline, max_difference=difference)


def main() -> None:
    quick = arguments(__doc__).parse_args().quick
    results = [
        compare("psnr+ssim 28x28x1", 1, 28, 0.3, quick=quick),
        compare("psnr+ssim 32x32x3", 3, 32, 8 / 255, quick=quick),
    ]
    report("metrics", results, ["torch", "numpy", "scikit-image", "scipy"])


if __name__ == "__main__":
    main()
