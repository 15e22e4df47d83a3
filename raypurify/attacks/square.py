"""The Square attack in the L-infinity ball: random search, without a gradient (Andriushchenko et al. 2020)."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raypurify.attacks import Attacked
from raypurify.attacks._active import begin_draws, logits_of
from raypurify.attacks._gradients import ball, check_epsilon
from raypurify.attacks._survivors import Survivors, check_counts
from raypurify.seeds import derive, uniform

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Squares, of 10,000, after which the next are of half the area."""
DRAWN_AT_ONCE = 100
"""Squares of an image whose random numbers are drawn together."""


@dataclass(frozen=True, kw_only=True)
class Square:
    """Squares of ever smaller area at random places, each channel's pixels on one side of the ball; kept if it helps.

    The search starts from vertical stripes on the ball's surface. What helps is a smaller margin of the true class over
    the best other one (of the best other one over the target). Each image has squares of its own, and leaves the batch
    when it is fooled; one that never is comes back where its margin was the least. An image that is wrong at first
    comes back unmodified.
    """

    epsilon: float = 0.3
    """Radius of the L-infinity ball, on pixels in [0, 1]."""
    queries: int = 5000
    """Squares that are tried, one query each."""
    p_init: float = 0.8
    """Area of the first squares, as a share of the image's."""
    rescale: bool = True
    """Let the squares shrink in the course of ``queries`` as the authors' do in 10,000; if not, as if there were 10,000
    (so does AutoAttack)."""

    norm = "linf"

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_counts(self, "queries")
        if not 0 < self.p_init <= 1:
            raise ValueError(f"p_init must be above 0 and at most 1; got {self.p_init!r}")

    def __call__(
        self, victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Sequence[int], target: Tensor | None = None
    ) -> Attacked:
        """See :class:`raypurify.attacks.Attack`; the stripes and squares come from ``seeds``."""
        found = Survivors(victim, x, y, target)
        begin_draws(victim, "square")
        images = found.images
        low, high = ball(x[images], self.epsilon)
        chosen = derive(found.seeds(seeds, images), "stripes")
        up = uniform(chosen, x.new_empty(len(images), x.shape[1], 1, x.shape[3]), -1, 1) >= 0
        x_adv, drawn = torch.where(up, high, low), up
        for query in range(self.queries + 1):
            if not len(images):
                break
            logits = logits_of(victim, x_adv)
            found.effort.look(images)
            keep = ~found.judge(images, x_adv, logits)
            images, low, high = images[keep], low[keep], high[keep]
            square, drawn = query % DRAWN_AT_ONCE, drawn[keep]
            if not square:
                chosen = derive(found.seeds(seeds, images), "squares", query // DRAWN_AT_ONCE)
                drawn = uniform(chosen, x.new_empty(len(images), DRAWN_AT_ONCE, 2 + x.shape[1]), 0, 1)
            inside, up = squares(drawn[:, square], self._side(query, x), x)
            x_adv = torch.where(inside, torch.where(up, high, low), found.best[images])
        return found.effort.attacked(found.best)

    def _side(self, query: int, x: Tensor) -> int:
        """The side of a square, in pixels."""
        height, width = x.shape[2:]
        count = int(query / self.queries * 10_000) if self.rescale else query
        share = self.p_init / 2 ** bisect_left(HALVED_AFTER, count)
        return min(max(round(math.sqrt(share * height * width)), 1), height, width)


def squares(drawn: Tensor, side: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """A square in each image, anywhere in it.

    Args:
        drawn: (N, 2 + C) uniform in [0, 1): the place from the top and from the left, and each channel's direction.
        side: pixels.
        like: images (..., C, H, W), for their size.

    Returns:
        which pixels are inside (N, 1, H, W) bool, and which channels go up (N, C, 1, 1) bool.
    """
    height, width = like.shape[2:]
    top, left = (drawn[:, 0] * (height - side + 1)).long(), (drawn[:, 1] * (width - side + 1)).long()
    down = torch.arange(height, device=like.device) - top[:, None]
    right = torch.arange(width, device=like.device) - left[:, None]
    inside = ((down >= 0) & (down < side))[:, :, None] & ((right >= 0) & (right < side))[:, None]
    return inside[:, None], (drawn[:, 2:] >= 0.5)[:, :, None, None]


build = Square
