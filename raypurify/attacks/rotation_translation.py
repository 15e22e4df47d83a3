"""Rotation and translation (Engstrom et al. 2019; Foolbox's SpatialAttack): the worst of a few for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raypurify.attacks import Attacked
from raypurify.attacks._active import Effort, begin_draws, fools, logits_of, margin
from raypurify.attacks.stadv import warp
from raypurify.seeds import uniform

CHUNK = 512
"""Images sent through the victim at once: a small batch is not slow, a large one needs no more memory."""


@dataclass(frozen=True, kw_only=True)
class RotationTranslation:
    """Turns and shifts each image by the transform of a grid, or of a random sample, that the true class loses by most.

    Transforms are compared by the margin of the best other class over the true one (of the target over the best other).
    An image that is wrong at first, or that no transform makes wrong, comes back unmodified. All others try all.
    """

    max_rotation: float = 30.0
    """The largest angle that an image is turned by, in degrees, either way."""
    max_translation: float = 3.0
    """The largest shift of an image across, and down, in pixels, either way."""
    num_rotations: int = 5
    """How many rotations the grid has, evenly spaced; 1: none."""
    num_translations: int = 5
    """How many translations the grid has across, and as many down; 1: none."""
    grid_search: bool = True
    """Whether the grid's num_rotations num_translations^2 transforms are tried, or random ones, each image its own."""
    random_steps: int = 100
    """How many random transforms are tried, where the grid is not."""

    norm = None
    radius = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_rotation <= 180:
            raise ValueError(f"max_rotation must be in [0, 180] degrees; got {self.max_rotation!r}")
        if self.max_translation < 0:
            raise ValueError(f"max_translation must be at least 0 pixels; got {self.max_translation!r}")
        for name in ("num_rotations", "num_translations", "random_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)!r}")

    def __call__(
        self, victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Sequence[int], target: Tensor | None = None
    ) -> Attacked:
        """See :class:`raypurify.attacks.Attack`; only random transforms come from ``seeds``."""
        x_adv, effort = x.clone(), Effort(x)
        right = ~fools(logits_of(victim, x), y, target)
        effort.look()
        active = torch.nonzero(right).flatten()
        if not len(active):
            return effort.attacked(x_adv)
        clean, label, goal = x[active], y[active], None if target is None else target[active]
        transforms = self._transforms(seeds, x)[active]
        ahead = _margins(victim, clean, label if goal is None else goal, transforms)
        worst = (ahead.argmin(dim=1) if goal is None else ahead.argmax(dim=1)).view(-1, 1, 1).expand(-1, 1, 3)
        moved = rotate_and_translate(clean, transforms.gather(1, worst)[:, 0])
        begin_draws(victim, "verdict")
        effort.queries[active] += transforms.shape[1] + 1
        fooled = fools(logits_of(victim, moved), label, goal)
        x_adv[active[fooled]] = moved[fooled]
        return effort.attacked(x_adv)

    def _transforms(self, seeds: Sequence[int], x: Tensor) -> Tensor:
        """(N, T, 3): degrees, pixels to the right, pixels down."""
        limits = x.new_tensor([self.max_rotation, self.max_translation, self.max_translation])
        if not self.grid_search:
            return uniform(seeds, x.new_empty(len(x), self.random_steps, 3), -1, 1) * limits
        counts = (self.num_rotations, self.num_translations, self.num_translations)
        axes = [torch.linspace(-1, 1, count) if count > 1 else torch.zeros(1) for count in counts]
        return (torch.cartesian_prod(*axes).to(x) * limits).expand(len(x), -1, -1)


def _margins(victim: nn.Module, x: Tensor, labels: Tensor, transforms: Tensor) -> Tensor:
    """By how much the label's logit is ahead of the best other one, under each of (N, T, 3) transforms: (N, T)."""
    count = transforms.shape[1]
    found = []
    for pairs in torch.arange(len(x) * count, device=x.device).split(CHUNK):
        images = pairs // count
        moved = rotate_and_translate(x[images], transforms[images, pairs % count])
        begin_draws(victim, "transforms")  # the same draws for all transforms, in whatever chunk they are
        found.append(margin(logits_of(victim, moved), labels[images]))
    return torch.cat(found).view(-1, count)


def rotate_and_translate(x: Tensor, transforms: Tensor) -> Tensor:
    """Each image turned about its centre, then shifted; bilinear, black where nothing was.

    Angles and lengths are those of pixels, also in an image that is not square; :func:`raypurify.attacks.stadv.warp`
    says how the grid is counted.

    Args:
        x: (N, C, H, W) in [0, 1].
        transforms: (N, 3): degrees counter-clockwise as seen, pixels to the right, pixels down.

    Returns:
        (N, C, H, W) in [0, 1].
    """
    height, width = x.shape[2:]
    angles = torch.deg2rad(transforms[:, 0]).view(-1, 1, 1)
    cos, sin = angles.cos(), angles.sin()
    right = torch.arange(width, device=x.device, dtype=x.dtype) - (width - 1) / 2
    down = torch.arange(height, device=x.device, dtype=x.dtype)[:, None] - (height - 1) / 2
    across, along = right - transforms[:, 1].view(-1, 1, 1), down - transforms[:, 2].view(-1, 1, 1)
    # Where each pixel comes from: the shift undone, then the rotation.
    flow = torch.stack([cos * across - sin * along - right, sin * across + cos * along - down], dim=1)
    return warp(x, flow, padding="zeros").clamp(0, 1)


build = RotationTranslation
