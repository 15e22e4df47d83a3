"""How far images are from the clean ones: the table of metrics; and the confidence interval of an accuracy.

A metric takes two batches of one shape (N, C, H, W), floating point, pixels in [0, 1], the clean one second, and
returns (N,) float32 on the images' device. A value depends on its own two images only, never on the rest of the batch
(beyond rounding). Columns, units, totals and the report follow from a metric's entry in ``METRICS``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # who asks for the table's columns loads no torch
    import torch
    from torch import Tensor

COMPARISONS = ("adversarial", "purified", "clean_purified")
"""The images that are compared with the clean one: attacked; attacked then purified; clean then purified."""

PSNR_CAP = 100.0
"""dB. The PSNR of identical images, and the highest that :func:`psnr` returns, so that no mean is infinite."""

PSNR_EQ16_OFFSET = 20 * math.log10(255)
"""dB, 48.13. The paper's Eq. 16 divides 255² by an error that is measured on pixels in [0, 1]: its figures are this
much above :func:`psnr`."""

SSIM_WINDOW = 11
"""Pixels: the side of the Gaussian window of :func:`ssim`, and the smallest side of an image that has an SSIM."""

_SIGMA = 1.5
_C1 = 0.01**2
_C2 = 0.03**2
# A dense product with a band matrix beats a convolution while the band is not much wider than the window, and an output
# tile of 64 is where it is fastest on CPU; the pixels bound keeps the four moment maps in the cache.
_TILE = 64
_PIXELS_AT_ONCE = 1 << 17
_VALUES_AT_ONCE = 1 << 20


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / MSE) over all pixels and channels, at most ``PSNR_CAP``.

    Raises:
        ValueError: the images are not of one shape (N, C, H, W), or not floating point.
    """
    error = _difference(a, b).square().mean(dim=1)
    return (-10 * error.log10()).clamp(max=PSNR_CAP)


def linf(a: Tensor, b: Tensor) -> Tensor:
    """Largest absolute difference of a pixel.

    Raises:
        ValueError: as :func:`psnr`.
    """
    return _difference(a, b).abs().amax(dim=1)


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean length of the difference, over all pixels and channels.

    Raises:
        ValueError: as :func:`psnr`.
    """
    return _difference(a, b).square().sum(dim=1).sqrt()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of Wang et al. 2004: 11×11 Gaussian window, σ = 1.5, the mean over positions and channels.

    NaN for every image where a side is under 11 pixels: no window fits. Equal to 1e-4 to scikit-image's
    ``structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)``. Carries no
    gradient. Autocast is switched off inside; on CUDA the products are in float64, so that TF32 can't degrade them.

    Raises:
        ValueError: as :func:`psnr`.
    """
    import torch

    _check(a, b)
    height, width = a.shape[2:]
    if min(height, width) < SSIM_WINDOW:
        return torch.full((len(a),), math.nan, device=a.device)
    tile = _TILE + SSIM_WINDOW - 1
    pixels = len(a) * a.shape[1] * min(height, tile) * min(width, tile)
    chunks = max(1, min(len(a), math.ceil(pixels / _PIXELS_AT_ONCE)))
    with torch.no_grad(), torch.autocast(a.device.type, enabled=False):
        pairs = zip(a.tensor_split(chunks), b.tensor_split(chunks), strict=True)
        return torch.cat([_ssim_of_chunk(left, right) for left, right in pairs])


def _ssim_of_chunk(a: Tensor, b: Tensor) -> Tensor:
    rows, columns = (side - SSIM_WINDOW + 1 for side in a.shape[2:])
    a, b = (image.double() if image.is_cuda else image.float() for image in (a, b))
    total = a.new_zeros(len(a))
    for top in range(0, rows, _TILE):
        for left in range(0, columns, _TILE):
            tile = (..., slice(top, top + _TILE + SSIM_WINDOW - 1), slice(left, left + _TILE + SSIM_WINDOW - 1))
            total += _ssim_map(a[tile], b[tile]).flatten(1).sum(dim=1)
    return (total / (a.shape[1] * rows * columns)).float()


def _ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """SSIM at each position of the window, (N, C, H - 10, W - 10).

    With s = a + b and d = a - b, Wang's two factors are 1 - 2 μ_d² / (μ_s² + μ_d² + 2 C1) and
    1 - 2 σ_d² / (σ_s² + σ_d² + 2 C2): four moment maps instead of five, and exactly 1 for identical images.
    """
    import torch

    moments = a.new_empty(4, *a.shape)
    torch.add(a, b, out=moments[0])
    torch.sub(a, b, out=moments[1])
    # E[x²] - E[x]² cancels badly in float32 far from zero, and a variance does not change with the origin.
    origin = moments[:2].mean(dim=(3, 4), keepdim=True)
    moments[:2] -= origin
    torch.mul(moments[:2], moments[:2], out=moments[2:])
    rows = _gaussian_band(a.shape[2], a.dtype, a.device)
    columns = _gaussian_band(a.shape[3], a.dtype, a.device)
    means, squares = torch.matmul(rows, moments @ columns.T).chunk(2)
    variances = squares - means.square()
    luminance = _one_minus_share((means + origin).square(), 2 * _C1)
    return luminance.mul_(_one_minus_share(variances, 2 * _C2))


def _one_minus_share(sum_and_difference: Tensor, constant: float) -> Tensor:
    """1 - 2 d / (s + d + constant), for s and d stacked: (2, ...)."""
    import torch

    s, d = sum_and_difference
    return torch.addcdiv(torch.ones_like(d), d, (s + d).add_(constant), value=-2)


@functools.lru_cache(maxsize=64)
def _gaussian_band(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(side - 10, side): row i averages pixels i to i + 10 with the window's weights along one axis."""
    import torch

    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / _SIGMA) ** 2)
    weights /= weights.sum()
    band = torch.zeros(side - SSIM_WINDOW + 1, side, dtype=torch.float64)
    for row in range(len(band)):
        band[row, row : row + SSIM_WINDOW] = weights
    return band.to(device=device, dtype=dtype)


def compare(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """PSNR, SSIM, L∞ and L2 of 8-bit images of any size, a strip after the other: the strips alone become floats.

    Args:
        a: (N, H, W, C) uint8.
        b: of the same shape.

    Returns:
        "psnr" (dB), "ssim" (NaN where a side is under 11 pixels), "linf" and "l2", each (N,) float32, on pixels in
        [0, 1].

    Raises:
        ValueError: another dtype, or two shapes.
    """
    if a.dtype != np.uint8 or b.dtype != np.uint8 or a.ndim != 4 or a.shape != b.shape:
        raise ValueError(
            f"expected two batches (N, H, W, C) uint8 of one shape, got {a.shape} {a.dtype} and {b.shape} {b.dtype}"
        )
    values = max(1, a.shape[2] * a.shape[3])
    # A multiple of 64 rows of windows, which ssim is fastest on.
    rows = max(64, _VALUES_AT_ONCE // values // 64 * 64)
    batch = max(1, _VALUES_AT_ONCE // (values * min(rows, max(1, a.shape[1]))))
    parts = [_compared(a[i : i + batch], b[i : i + batch], rows) for i in range(0, max(1, len(a)), batch)]
    return {name: np.concatenate([part[name] for part in parts]).astype(np.float32) for name in parts[0]}


def _compared(a: NDArray[np.uint8], b: NDArray[np.uint8], rows: int) -> dict[str, NDArray[np.floating]]:
    """How a few images differ, measured ``rows`` rows at a time; windows of SSIM reach into the rows after these."""
    count, height = a.shape[:2]
    windows = height - SSIM_WINDOW + 1
    largest, squares = np.zeros(count, np.int64), np.zeros(count, np.int64)
    similarity = np.full(count, 0.0 if windows > 0 else math.nan)
    for top in range(0, height, rows):
        difference = np.abs(a[:, top : top + rows].astype(np.int32) - b[:, top : top + rows])
        largest = np.maximum(largest, difference.max(axis=(1, 2, 3), initial=0))
        squares += np.square(difference, out=difference).sum(axis=(1, 2, 3), dtype=np.int64)
        here = min(rows, windows - top)
        if here > 0:
            x, y = (_scaled(image[:, top : top + here + SSIM_WINDOW - 1]) for image in (a, b))
            similarity += here / windows * ssim(x, y).double().numpy()
    error = squares / max(1, a[:1].size) / 255**2
    decibels = -10 * np.log10(np.maximum(error, 10 ** (-PSNR_CAP / 10)))
    return {"psnr": decibels, "ssim": similarity, "linf": largest / 255, "l2": np.sqrt(squares) / 255}


def _scaled(pixels: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, C) uint8 -> (N, C, H, W) float32 in [0, 1]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)).div_(255)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Bounds in [0, 1] of a proportion at 95%, by Wilson's score interval (Wilson 1927).

    Raises:
        ValueError: n is not positive, or successes is not in 0..n.
    """
    if n <= 0:
        raise ValueError(f"n must be at least 1, got {n}: a proportion of no images has no bounds")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be in 0..n = 0..{n}, got {successes}")
    share, z = successes / n, 1.96
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """a - b in float32, (N, C * H * W)."""
    _check(a, b)
    return (a.float() - b.float()).flatten(1)


def _check(a: Tensor, b: Tensor) -> None:
    if a.ndim != 4 or a.shape != b.shape:
        raise ValueError(f"expected two batches of one shape (N, C, H, W), got {tuple(a.shape)} and {tuple(b.shape)}")
    for image in (a, b):
        if not image.is_floating_point():
            raise ValueError(f"expected floating point pixels in [0, 1], got {image.dtype}: divide uint8 by 255 first")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One entry of the table: a distance to the clean image, and how tables and the report show it.

    A similarity is measured on all :data:`COMPARISONS`: columns ``NAME_adversarial``, ... of the scores, and their
    means in the summary. A perturbation is measured on the attacked image alone: column ``NAME`` of the scores, and
    ``NAME_max`` or ``NAME_median`` of the summary.
    """

    name: str
    """The start of the columns' names."""
    measure: Callable[[Tensor, Tensor], Tensor]
    """Images and clean images to (N,); see this module's text."""
    total: Literal["mean", "max", "median"] = "mean"
    """What the summary holds: of a similarity the mean; of a perturbation the largest, or the median over the images
    that the victim had right at first, where one that was not fooled is infinitely far."""
    nullable: bool = True
    """Whether there are images that have no value: NaN, which is null in tables and is left out of means."""
    unit: str = ""
    """The unit of a value; empty for a length or a number on pixels in [0, 1]."""
    heading: str = ""
    """The heading of its column in the report; empty: its name."""
    digits: int = 2
    """Decimals in the report."""
    eq16_offset: float | None = None
    """What the paper's Eq. 16 is above the mean over purified images, which gets a column ``NAME_purified_eq16``."""

    @property
    def title(self) -> str:
        """The heading of its column in the report."""
        return self.heading or self.name

    @property
    def comparisons(self) -> dict[str, str]:
        """Columns of the scores, and which of :data:`COMPARISONS` each is of."""
        if self.total == "mean":
            return {f"{self.name}_{kind}": kind for kind in COMPARISONS}
        return {self.name: "adversarial"}


METRICS = (
    Metric(name="linf", measure=linf, total="max", nullable=False, heading="L∞", digits=4),
    Metric(name="l2", measure=l2, total="median", nullable=False, heading="L2", digits=3),
    Metric(name="psnr", measure=psnr, nullable=False, unit="dB", heading="PSNR", eq16_offset=PSNR_EQ16_OFFSET),
    Metric(name="ssim", measure=ssim, heading="SSIM", digits=4),  # null where a side is under 11 pixels
)
"""What every evaluation measures."""


def measured(metrics: Sequence[Metric], kind: str, images: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """Columns of the scores of one of the :data:`COMPARISONS`: (N,) each."""
    return {
        column: metric.measure(images, clean)
        for metric in metrics
        for column, compared in metric.comparisons.items()
        if compared == kind
    }
