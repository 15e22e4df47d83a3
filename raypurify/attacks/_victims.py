"""What an attacker attacks: a classifier, alone or behind a purifier; and how a purifier is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from raypurify.seeds import seed_of


def purify(purifier: nn.Module, x: Tensor, seeds: Sequence[int]) -> Tensor:
    """The purified images; ``seeds``, one for each, are for a purifier that draws at random."""
    purified: Tensor = purifier(x, seeds) if is_random(purifier) else purifier(x)
    return purified


def detect(purifier: nn.Module, x: Tensor, seeds: Sequence[int], classifier: nn.Module | None = None) -> Tensor | None:
    """Which of the images the purifier takes for attacked: (N,) bool; None for a purifier that detects nothing.

    Args:
        seeds: one for each image, for a purifier that draws at random.
        classifier: behind the purifier, for one that asks it.
    """
    detector = getattr(purifier, "detect", None)
    if detector is None:
        return None
    more = {"classifier": classifier} if asks_classifier(purifier) else {}
    detected: Tensor = detector(x, seeds, **more) if is_random(purifier) else detector(x, **more)
    return detected


def asks_classifier(purifier: nn.Module) -> bool:
    """Whether the purifier's detector asks the classifier behind it."""
    return bool(getattr(purifier, "asks_classifier", False))


def is_differentiable(purifier: nn.Module) -> bool:
    """Whether the purifier has a gradient that is worth following."""
    return bool(getattr(purifier, "differentiable", True))


def is_random(purifier: nn.Module) -> bool:
    """Whether the purifier draws at random."""
    return bool(getattr(purifier, "random", False))


class Composite(nn.Module):
    """The classifier after the purifier, as a victim.

    A purifier that draws at random is drawn afresh in every call, ``draws`` times, and the logits are averaged
    (expectation over transformation, Athalye et al. 2018). The draws are those of ``seed`` and of how many calls came
    before, the same for all images of a batch, so that an image's result does not depend on its batch: attack each
    batch with a composite of its own. An attack whose calls depend on the batch begins its parts by
    :meth:`begin_draws`.

    Before a purifier that says what it suspects, the composite has ``suspicion(x) -> (N,)``, which attacks that follow
    the cross-entropy's gradient evade.

    Args:
        classifier: images to logits.
        purifier: images to images.
        surrogate: whose gradient stands for the purifier's on the way back (BPDA, Athalye et al. 2018); None: its own,
            zero where it has none.
        straight_through: the purifier's clip to [0, 1] lets gradients pass (it needs an ``unclipped`` method).
        draws: of a random purifier.
        seed: of these draws.
    """

    def __init__(
        self,
        classifier: nn.Module,
        purifier: nn.Module,
        *,
        surrogate: nn.Module | None = None,
        straight_through: bool = False,
        draws: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.classifier, self.purifier, self.surrogate = classifier, purifier, surrogate
        self.straight_through, self.draws, self.seed = straight_through, draws, seed
        self.part: tuple[object, ...] = ()
        self.calls = 0
        if hasattr(purifier, "suspicion") and not is_random(purifier):
            self.suspicion = self._suspicion

    def begin_draws(self, *part: object) -> None:
        """Begin a part of an attack: what is drawn in it follows from its name and the calls since."""
        self.part, self.calls = part, 0

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> (N, K) logits of the purified images."""
        if not is_random(self.purifier):
            return self.classifier(self._purified(x, ()))
        self.calls += 1
        seeds = [seed_of(self.seed, "expectation", *self.part, self.calls, draw) for draw in range(self.draws)]
        return torch.stack([self.classifier(self._purified(x, [seed] * len(x))) for seed in seeds]).mean(dim=0)

    def _suspicion(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N,): above 0 where the purifier takes an image for attacked."""
        more = {"classifier": self.classifier} if asks_classifier(self.purifier) else {}
        suspicion: Tensor = cast(Any, self.purifier).suspicion(x, **more)
        return suspicion.float()

    def _purified(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        if self.surrogate is not None:
            stand_in = self.surrogate(x)
            with torch.no_grad():
                difference = purify(self.purifier, x, seeds) - stand_in
            return stand_in + difference
        if self.straight_through:
            unclipped = cast(Any, self.purifier).unclipped
            free: Tensor = unclipped(x, seeds) if is_random(self.purifier) else unclipped(x)
            return free + (free.clamp(0, 1) - free).detach()
        purified = purify(self.purifier, x, seeds)
        # Where the purifier cut the graph its gradient is zero, which attacks can go on with.
        return purified if purified.requires_grad or not x.requires_grad else purified + 0 * x


def victim_of(
    classifier: nn.Module,
    purifier: nn.Module | None,
    *,
    stand_in: nn.Module | None,
    draws: int,
    seed: int,
    straight_through: bool = False,
) -> nn.Module:
    """What an attacker attacks: a classifier, behind the purifier if he knows one.

    Args:
        classifier: images to logits.
        purifier: that the attacker knows.
        stand_in: whose gradient he takes for a purifier that has none; None: that purifier's own.
        draws: see :class:`Composite`, likewise ``seed`` and ``straight_through``.
    """
    if purifier is None:
        return classifier
    return Composite(
        classifier,
        purifier,
        surrogate=None if is_differentiable(purifier) else stand_in,
        straight_through=straight_through,
        draws=draws,
        seed=seed,
    )
