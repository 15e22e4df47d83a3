"""What the attacks of AutoAttack share: who is not fooled yet, points to start from, checks of parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raypurify.attacks import Attack
from raypurify.attacks._active import Effort, fools, logits_of, margin, rivals, spread
from raypurify.seeds import uniform


class Survivors:
    """The images that an attack in a ball has not fooled yet, and the best that it found of each image.

    The best is what fools the victim; before that, the image whose label is the least ahead (whose target is the least
    behind) of all that were judged; before that, the clean image. Those that are wrong at first stay clean.
    """

    def __init__(self, victim: nn.Module, x: Tensor, y: Tensor, target: Tensor | None) -> None:
        """Look at the clean images; the arguments are those of :class:`raypurify.attacks.Attack`."""
        self.x, self.y, self.target = x, y, target
        self.clean_logits = logits_of(victim, x)
        self.effort = Effort(x)
        self.effort.look()
        self.best = x.clone()
        self.lowest = torch.full((len(x),), torch.inf, device=x.device)
        self.fooled = fools(self.clean_logits, y, target)

    @property
    def images(self) -> Tensor:
        """The numbers of those that are not fooled yet: (M,) int64."""
        return torch.nonzero(~self.fooled).flatten()

    def target_of(self, images: Tensor) -> Tensor | None:
        """The targets of these images (numbers); None without."""
        return None if self.target is None else self.target[images]

    def goals(self, count: int) -> list[Tensor]:
        """The classes (N,) that a targeted attack goes towards, one after the other: the target, or the ``count`` other
        classes that score highest on the clean image."""
        if self.target is not None:
            return [self.target]
        return list(rivals(self.clean_logits, self.y, count).unbind(dim=1))

    def judge(self, images: Tensor, x_adv: Tensor, logits: Tensor) -> Tensor:
        """Keep what is better than before; which of the images (M,), numbers, are now fooled: (M,) bool."""
        y, target = self.y[images], self.target_of(images)
        fooled = fools(logits, y, target)
        ahead = margin(logits, y) if target is None else -margin(logits, target)
        better = fooled | (ahead < self.lowest[images])
        self.best[images[better]], self.lowest[images[better]] = x_adv[better], ahead[better]
        self.fooled[images] = fooled
        return fooled

    def seeds(self, seeds: Sequence[int], images: Tensor) -> list[int]:
        """The seeds of these images (numbers)."""
        return [seeds[image] for image in images.tolist()]


def random_point(x: Tensor, radius: float, seeds: Sequence[int]) -> Tensor:
    """A uniform point of the L-infinity ball, drawn out until it touches the ball's surface, then cut to [0, 1]."""
    noise = uniform(seeds, x, -1, 1)
    return (x + radius * noise / spread(noise.flatten(1).abs().amax(dim=1), x)).clamp(0, 1)


def check_counts(attack: Attack, *names: str) -> None:
    """Raise ValueError unless these parameters are at least 1."""
    for name in names:
        if getattr(attack, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {getattr(attack, name)!r}")
