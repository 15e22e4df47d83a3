"""Certificates by denoised smoothing: how far, in L2, no attacker whatsoever can change an answer.

The smoothed classifier adds Gaussian noise to an image, purifies, classifies, and takes the vote of many draws (Cohen
et al. 2019; with a purifier before a frozen classifier, Salman et al. 2020). Its answer holds within the radius
``sigma * Phi^-1(p)``, where p is a lower bound of the probability of the top class. Draws give the bound, with a chance
of error of ``alpha``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy import special, stats
from torch import Tensor, nn

from raypurify import models
from raypurify.attacks import is_random, purify
from raypurify.data import AS_STORED, View
from raypurify.metrics import wilson_interval
from raypurify.runs import fields
from raypurify.seeds import seed_of

Procedure = Literal["fixed", "sequential"]
BLOCK = 100
"""Draws whose noise comes from one seed: that of the image, and of the block's number. A large image has fewer."""
BLOCK_VALUES = 2**22
"""Values of the noise of a block at most."""


@dataclass(frozen=True, kw_only=True)
class CertificationConfig:
    """What is certified, and how surely."""

    data: str
    """The images: digits, mnist, cifar10, the URL of a dataset, or my_package.module:callable[,KEY=VALUE...]."""
    split: Literal["train", "test"] = "test"
    """Which split of the data to use. Data without splits are split by a hash of the ids: a sixth is the test split."""
    limit: int | None = None
    """Take this number of images only: the first ones, or, of Parquet without splits, of each class its share."""
    every: int = 1
    """Of these, take every image of this number: with 20 the first one, the 21st, the 41st, ..."""
    view: View = AS_STORED
    classifiers: tuple[str, ...]
    """The classifiers: checkpoints, or my_package.module:callable."""
    purifiers: tuple[str, ...] = ("identity",)
    """The purifiers, best trained against noise: checkpoints, or NAME[,KEY=VALUE...], or my_package.module:callable."""
    sigmas: tuple[float, ...] = (0.25,)
    """Standard deviations of the noise, on pixels in [0, 1]."""
    procedure: Procedure = "fixed"
    """fixed: of each image --draws are drawn, and a bound follows from their count (Cohen et al. 2019). sequential:
    draws go on until it is known of each of --radii whether the image is safe there, or that --draws would not prove
    it; the bound holds whenever it stops. It takes far fewer draws, and its radius is as large as the answer needs."""
    draws: int = 10000
    """How many times noise is added to each image."""
    guesses: int = 100
    """Draws beside these, which pick the class that is certified."""
    alpha: float = 0.001
    """Chance, for each image, that its certificate is wrong."""
    radii: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5)
    """L2 radii, on pixels in [0, 1], at which accuracy is told."""
    clip: bool = False
    """Clip noisy images to [0, 1] before the purifier, as a training against noise does that clips."""
    attack_images: int = 20
    """This number of each cell's images is drawn, and those that are right are attacked by PGD in L2 through the noise:
    at 0.99 of their radii, and at those of --radii that are larger, until the answer changes. A run of whose
    certificates an attack proves more wrong than --alpha allows fails."""
    precision: models.Precision = "float32"
    """The type that the networks compute in. A certificate is of the networks in this type."""
    seed: int = 0
    """Seed of the noise, and of what a purifier draws at random."""

    def __post_init__(self) -> None:
        fields.check_choices(self)
        for name in ("classifiers", "purifiers", "sigmas", "radii"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one")
        if min(self.sigmas) <= 0 or min(self.radii) < 0:
            raise ValueError(f"sigmas must be above 0, radii at least 0; got {self.sigmas}, {self.radii}")
        if min(self.draws, self.guesses, self.every) < 1 or self.attack_images < 0:
            raise ValueError(
                "draws, guesses and every must be at least 1, attack_images at least 0; got "
                f"{self.draws}, {self.guesses}, {self.every}, {self.attack_images}"
            )
        for name in ("sigmas", "radii"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} name one twice; name each once: {getattr(self, name)}")
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"alpha must be above 0 and below 0.5; got {self.alpha!r}")


Networks = tuple[nn.Module, nn.Module]
"""A classifier and a purifier, on a device."""


@dataclass(frozen=True, kw_only=True)
class CertifiedCell:
    """A classifier behind a purifier, in noise of one size."""

    classifier: models.Model
    purifier: models.Model
    sigma: float

    @property
    def hash(self) -> str:
        """Follows from the networks and the noise."""
        parts = [self.classifier.identity, self.purifier.identity, self.sigma]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def placed(self, device: str) -> Networks:
        """Its networks on a device."""
        return models.placed(self.classifier.build(), device), models.placed(self.purifier.build(), device)


def bound_of(counts: NDArray[np.int64], draws: int, alpha: float) -> NDArray[np.float64]:
    """Lower bounds of probabilities at confidence 1 - alpha (Clopper and Pearson 1934).

    Args:
        counts: (N,) of ``draws`` each.
    """
    lower: NDArray[np.float64] = np.where(
        counts > 0, stats.beta.ppf(alpha, counts, np.maximum(draws - counts, 0) + 1), 0.0
    )
    return lower


def sequence_of(count: int, draws: int, alpha: float) -> tuple[float, float]:
    """A confidence interval of a probability that holds, at 1 - alpha, for all numbers of draws at once.

    It is where the likelihood, averaged over all probabilities, is less than 1 / alpha times that of the probability
    itself: a martingale, which by Ville's inequality seldom grows so large (Robbins 1970). The average has the weights
    of Jeffreys' prior, which loses less than equal ones where nearly all draws agree.
    """
    average = special.betaln(count + 0.5, draws - count + 0.5) - special.betaln(0.5, 0.5) + np.log(alpha)

    def beyond(p: float) -> bool:
        return bool(average > special.xlogy(count, p) + special.xlog1py(draws - count, -p))

    def edge(outer: float, inner: float) -> float:
        if not beyond(outer):
            return outer
        for _ in range(50):
            middle = (outer + inner) / 2
            outer, inner = (middle, inner) if beyond(middle) else (outer, middle)
        return outer

    mean = count / draws
    return edge(0.0, mean), edge(1.0, mean)


def radius_of(bounds: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """L2 radii that lower bounds of the top class's probability certify; 0 where the vote abstains."""
    radii: NDArray[np.float64] = np.where(bounds > 0.5, sigma * stats.norm.ppf(np.clip(bounds, 0.5, 1 - 1e-16)), 0.0)
    return radii


def certificate(label: int, guess: int, draws: int, count: int, bound: float, sigma: float) -> dict[str, Any]:
    """An image's row of ``schema.CERTIFICATES``, without its id."""
    abstained = not bound > 0.5
    return {
        "label": label,
        "guess": guess,
        "draws": draws,
        "count": count,
        "bound": bound,
        "radius": float(radius_of(np.array([bound]), sigma)[0]),
        "right": guess == label and not abstained,
        "abstained": abstained,
    }


def added_up(
    table: pa.Table, guesses: NDArray[np.int64], votes: NDArray[np.int64], draws: int, alpha: float, sigma: float
) -> list[dict[str, Any]]:
    """Rows of ``schema.CERTIFICATES`` from votes.

    Args:
        table: ``id`` and ``label`` of N images.
        guesses: (N, K) votes that pick the class.
        votes: (N, K) others, of as many ``draws``, that it is counted in.
        draws: see ``votes``.
        alpha: chance of error for each image.
        sigma: of the noise.
    """
    picked = guesses.argmax(axis=1)
    counts = votes[np.arange(len(picked)), picked]
    bounds = bound_of(counts, draws, alpha)
    found = zip(*(column.tolist() for column in (picked, counts, bounds)), strict=True)
    return [
        {"id": row["id"], **certificate(row["label"], guess, draws, count, bound, sigma)}
        for row, (guess, count, bound) in zip(table.to_pylist(), found, strict=True)
    ]


def summarised(table: pa.Table, radii: Sequence[float]) -> Iterator[dict[str, Any]]:
    """What the rows of ``schema.CERTIFIED`` tell of certificates, one for each radius.

    Args:
        table: of the schema ``CERTIFICATES``.
        radii: L2.

    Raises:
        ValueError: there are none.
    """
    if not len(table):
        raise ValueError("there are no certificates: every image was rejected; see rejects/")
    right, radius, draws, abstained = (table[name].to_numpy() for name in ("right", "radius", "draws", "abstained"))
    for at in radii:
        safe = int((right & (radius >= at)).sum())
        low, high = wilson_interval(safe, len(table))
        yield {
            "radius": at,
            "n": len(table),
            "certified": safe / len(table),
            "certified_low": low,
            "certified_high": high,
            "abstained": float(abstained.mean()),
            "draws_mean": float(draws.mean()),
            "radius_mean": float(np.where(right, radius, 0).mean()),
        }


def block_of(shape: Sequence[int]) -> int:
    """How many draws of an image (C, H, W) are a block: a divisor of :data:`BLOCK`."""
    most = BLOCK_VALUES // max(1, math.prod(shape))
    return next((size for size in (100, 50, 25, 20, 10, 5, 4, 2) if size <= most), 1)


class Smoothed:
    """A classifier behind noise and a purifier, on a device."""

    def __init__(self, networks: Networks, sigma: float, config: CertificationConfig, device: str, batch: int) -> None:
        """``batch`` images go through the networks at once; no vote depends on it but for rounding."""
        self.classifier, self.purifier = networks
        self.sigma, self.config, self.device, self.batch = sigma, config, device, batch

    def votes(self, x: Tensor, ids: Sequence[str], part: str, first: int, draws: int) -> Tensor:
        """How often each class is answered: (N, K) int64.

        Args:
            x: (N, C, H, W) float32 in [0, 1], on the device.
            ids: the images' ids.
            part: name of the draws, which their noise follows from.
            first: number of the first draw, a multiple of :data:`BLOCK`.
            draws: how many.
        """
        total: Tensor | None = None
        with torch.no_grad(), models.autocast(self.device, self.config.precision):
            for rows, noisy, seeds in self.noisy(x, ids, part, first, draws):
                restored = purify(self.purifier, noisy, seeds)
                logits = self.classifier(restored)
                if total is None:
                    total = torch.zeros(len(x), logits.shape[1], dtype=torch.int64, device=x.device)
                places = rows * total.shape[1] + logits.argmax(dim=1)
                total += torch.bincount(places, minlength=total.numel()).view_as(total)
        assert total is not None
        return total

    def noisy(
        self, x: Tensor, ids: Sequence[str], part: str, first: int, draws: int
    ) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
        """Noisy images, a batch at a time: rows of ``x`` (M,), images (M, C, H, W), and seeds for a random purifier."""
        kept: list[tuple[Tensor, Tensor, list[int]]] = []
        random, block, held = is_random(self.purifier), block_of(x.shape[1:]), 0
        for row, name in enumerate(ids):
            for start in range(first, first + draws, block):
                count = min(block, first + draws - start)
                seed = seed_of(self.config.seed, "certificate", name, part, start // block)
                seeds = [seed_of(seed, "purify", draw) for draw in range(count)] if random else [0] * count
                rows = torch.full((count,), row, device=x.device)
                kept.append((rows, self._noise(x[row], seed, block)[:count], seeds))
                held += count
                if held >= self.batch:
                    kept = [(yield from self._batches(x, kept, held // self.batch * self.batch))]
                    held %= self.batch
        if held:
            yield from self._batches(x, kept, held)

    def _noise(self, like: Tensor, seed: int, block: int) -> Tensor:
        """Standard normal noise of a block of draws, made on the device: (block, C, H, W)."""
        generator = torch.Generator(like.device).manual_seed(seed)
        return torch.randn((block, *like.shape), generator=generator, device=like.device)

    def _batches(
        self, x: Tensor, kept: Sequence[tuple[Tensor, Tensor, list[int]]], count: int
    ) -> Generator[tuple[Tensor, Tensor, list[int]], None, tuple[Tensor, Tensor, list[int]]]:
        """Batches of the first so many that are kept: their rows, noise and seeds. Returns the others."""
        rows, noise = torch.cat([own for own, _, _ in kept]), torch.cat([own for _, own, _ in kept])
        seeds = [seed for _, _, own in kept for seed in own]
        for start in range(0, count, self.batch):
            part = slice(start, min(start + self.batch, count))
            noisy = x[rows[part]] + self.sigma * noise[part]
            yield rows[part], noisy.clamp(0, 1) if self.config.clip else noisy, seeds[part]
        return rows[count:], noise[count:], seeds[count:]


def decided(smoothed: Smoothed, x: Tensor, name: str, label: int) -> dict[str, Any]:
    """Draw of one image until it is known, of each radius, whether it is safe there, or that no draws will prove it.

    Returns:
        A row of ``schema.CERTIFICATES`` but for the id.

    Args:
        smoothed: the smoothed classifier; its config names the radii, and how many draws there are at most.
        x: (C, H, W) float32 in [0, 1], on the device.
        name: the image's id.
        label: its true class.
    """
    config, sigma = smoothed.config, smoothed.sigma
    guess = int(smoothed.votes(x[None], [name], "guess", 0, config.guesses)[0].argmax())
    needed = stats.norm.cdf(np.array(config.radii) / sigma)
    draws = count = 0
    lowest, highest = 0.0, 1.0
    while draws < config.draws:
        best, _ = sequence_of(count + config.draws - draws, config.draws, config.alpha)
        if not np.any((needed > lowest) & (needed <= min(highest, max(best, lowest)))):
            break
        more = min(BLOCK, config.draws - draws)
        count += int(smoothed.votes(x[None], [name], "count", draws, more)[0, guess])
        draws += more
        low, high = sequence_of(count, draws, config.alpha)
        lowest, highest = max(lowest, low), min(highest, high)
    return certificate(label, guess, draws, count, lowest, sigma)


def sample(smoothed: Smoothed, x: Tensor, name: str, label: int) -> dict[str, Any]:
    """An image clean, with the noise of its first draw, and purified: a row of ``schema.NOISY_SAMPLES``.

    Args:
        smoothed: the smoothed classifier.
        x: (C, H, W) float32 in [0, 1], on the device.
        name: the image's id.
        label: its true class.
    """
    with torch.no_grad(), models.autocast(smoothed.device, smoothed.config.precision):
        _, noisy, seeds = next(smoothed.noisy(x[None], [name], "count", 0, 1))
        pixels = {"clean": x[None], "noisy": noisy, "purified": purify(smoothed.purifier, noisy, seeds)}
        told = {f"pred_{kind}": int(smoothed.classifier(one).argmax()) for kind, one in pixels.items()}
    hwc = {kind: one[0].permute(1, 2, 0).float().cpu() for kind, one in pixels.items()}
    flat = {kind: one.flatten().numpy() for kind, one in hwc.items()}
    return {"id": name, "label": label, **told, "shape": list(hwc["clean"].shape), **flat}
