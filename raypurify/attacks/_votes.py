"""A detector by vote: an image is suspect whose answers, in noise, do not agree (Cohen et al. 2019, PREDICT)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raypurify.attacks._victims import purify
from raypurify.seeds import derive, normal

ALPHA = 0.001
"""Chance at most that the vote settles on a class that is not the likeliest."""
LEAST = 11
"""Draws that can settle a vote, where all agree."""


def abstains(
    classifier: nn.Module, purifier: nn.Module, x: Tensor, seeds: Sequence[int], *, draws: int, sigma: float
) -> Tensor:
    """Where the vote of a smoothed classifier cannot tell which class is the likeliest: (N,) bool.

    Gaussian noise is added to each image, which is purified and classified, draw by draw. The vote abstains where the
    two most frequent answers might be equally likely (a two-sided binomial test at :data:`ALPHA`).

    Args:
        classifier: images to logits.
        purifier: images to images, at its best one that was trained against noise.
        x: (N, C, H, W) in [0, 1].
        seeds: one for each image, of its noise.
        draws: at least 1.
        sigma: standard deviation of the noise, on pixels in [0, 1].
    """
    told = []
    for draw in range(draws):
        own = derive(seeds, "vote", draw)
        noisy = x + sigma * normal(own, x)
        told.append(classifier(purify(purifier, noisy, derive(own, "purify"))).argmax(dim=1))
    answers = torch.stack(told, dim=1)
    votes = nn.functional.one_hot(answers, num_classes=max(2, int(answers.max()) + 1)).sum(dim=1)
    first, second = votes.topk(2, dim=1).values.double().unbind(dim=1)
    return 2 * _tail(first, first + second) > ALPHA


def _tail(least: Tensor, n: Tensor) -> Tensor:
    """The chance of so many heads at least among n tosses of a fair coin: (N,) float64."""
    heads = torch.arange(int(n.max()) + 1, dtype=torch.float64, device=n.device)[:, None]
    others = (n - heads).clamp_min(0)
    chances = (torch.lgamma(n + 1) - torch.lgamma(heads + 1) - torch.lgamma(others + 1) - n * math.log(2)).exp()
    return torch.where((heads >= least) & (heads <= n), chances, 0.0).sum(dim=0)


def check_votes(draws: int, sigma: float) -> None:
    """Raise a ValueError where a detector by so many draws, or none, in noise of this size cannot be."""
    if draws and draws < LEAST:
        raise ValueError(
            f"certify_draws must be 0, for no vote, or at least {LEAST}, which can settle one; got {draws}"
        )
    if sigma <= 0:
        raise ValueError(f"certify_sigma must be above 0; got {sigma!r}")
