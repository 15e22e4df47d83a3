"""Certificates under attack: what the best attack that is found leaves of a smoothed classifier, at each radius.

Accuracy under an attack must lie above the certified one. An attack that proves a certificate wrong tells of a fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

from raypurify.attacks import Composite, is_differentiable, purify
from raypurify.attacks.pgd_l2 import PGDL2
from raypurify.evaluation.certification import CertificationConfig, Smoothed
from raypurify.seeds import derive, normal, seed_of

ATTACK = PGDL2(steps=20)
"""What certificates are held against, at radii of their own."""
ATTACK_DRAWS = 16
"""Draws that the attacker's gradient is averaged over."""
VOTES = 1000
"""Draws at most of the vote on an image that is attacked beyond its radius."""
ATTACK_COST = 3 * ATTACK.steps * ATTACK_DRAWS + VOTES
"""About how many draws an attack on an image costs: a gradient is three passes through the networks."""
ATTACKS = 3
"""How often an image is attacked, about: within its radius, and beyond until its answer changes."""
WITHIN = 0.99
"""Share of its radius at which an image is attacked."""


class Noisy(nn.Module):
    """Noise, then a purifier: what an attacker who knows both attacks through."""

    random = True

    def __init__(self, purifier: nn.Module, sigma: float, *, clip: bool) -> None:
        super().__init__()
        self.purifier, self.sigma, self.clip = purifier, sigma, clip

    def forward(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        """(N, C, H, W) -> the same; one seed for each image."""
        noisy = x + self.sigma * normal(derive(seeds, "noise"), x)
        noisy = noisy.clamp(0, 1) if self.clip else noisy
        purified = purify(self.purifier, noisy, derive(seeds, "purify"))
        # The gradient of the identity stands for that of a purifier that has none (BPDA).
        return purified if is_differentiable(self.purifier) else noisy + (purified - noisy).detach()


def attacked(smoothed: Smoothed, x: Tensor, row: Mapping[str, Any], radii: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Attack an image within its radius, and at larger ones until its answer changes.

    Args:
        smoothed: the smoothed classifier.
        x: (C, H, W) float32 in [0, 1], on the device.
        row: of ``schema.CERTIFICATES``.
        radii: at which accuracy is told.

    Yields:
        A row of ``schema.ATTACKED_CERTIFICATES`` for each radius; none of an image that is not right.
    """
    for at in _radii_of(row, radii):
        found = _attacked_at(smoothed, x, row, at)
        yield found
        if at > row["radius"] and found["answer"] != row["guess"]:
            return


def _radii_of(row: Mapping[str, Any], radii: Sequence[float]) -> list[float]:
    """Where an image is attacked that is right: within its radius, and at each of ``radii`` beyond."""
    if not row["right"]:
        return []
    return [WITHIN * row["radius"], *sorted(radius for radius in radii if radius > row["radius"])]


def _attacked_at(smoothed: Smoothed, x: Tensor, row: Mapping[str, Any], at: float) -> dict[str, Any]:
    """A row of ``schema.ATTACKED_CERTIFICATES``: an image under an attack in the L2 ball of radius ``at``."""
    config, name = smoothed.config, row["id"]
    seed = seed_of(config.seed, "certificate", name, "attack")
    noisy = Noisy(smoothed.purifier, smoothed.sigma, clip=config.clip)
    victim = Composite(smoothed.classifier, noisy, draws=ATTACK_DRAWS, seed=seed)
    y = torch.full((1,), row["guess"], device=x.device)
    x_adv = replace(ATTACK, epsilon=at)(victim, x[None], y, seeds=[seed]).x_adv
    # Within the radius a wrong certificate is to be proved: with as many draws as it was made with.
    draws = config.draws if at <= row["radius"] else min(config.draws, VOTES)
    votes = smoothed.votes(x_adv, [name], "attacked", 0, draws)[0]
    return {
        **{column: row[column] for column in ("id", "guess", "radius")},
        "at": at,
        "l2": float((x_adv[0] - x).norm()),
        "answer": int(votes.argmax()),
        "votes": votes.tolist(),
    }


def picked(rows: Sequence[Mapping[str, Any]], config: CertificationConfig) -> list[Mapping[str, Any]]:
    """Certificates in the order that the seed draws them in."""
    return sorted(rows, key=lambda row: seed_of(config.seed, "attacked", row["id"]))


def covers(made: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], radii: Sequence[float]) -> bool:
    """Whether attacks that were made (``schema.ATTACKED_CERTIFICATES``) are all that these certificates ask for."""
    known: dict[tuple[Any, ...], dict[float | None, bool]] = {}
    for row in made:
        changed = row["answer"] != row["guess"]
        known.setdefault((row["id"], row["guess"], row["radius"]), {})[row.get("at")] = changed
    for row in rows:
        found = known.get((row["id"], row["guess"], row["radius"]), {})
        # Where a smaller ball was enough, a larger one is.
        lost = min(
            (at for at, changed in found.items() if at is not None and at > row["radius"] and changed), default=None
        )
        asked = (at for at in _radii_of(row, radii) if lost is None or at < lost)
        if any(at not in found for at in asked):
            return False
    return True


def empirical(made: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], radius: float) -> float | None:
    """The share of these certificates' images that are right, and that no attack within a radius changed.

    A vote that is merely lost within an image's own radius does not count: see :func:`is_wrong`.

    Args:
        made: the attacks on them, of ``schema.ATTACKED_CERTIFICATES``.
        rows: of ``schema.CERTIFICATES``; of none there is no share.
        radius: L2.
    """
    lost = {row["id"] for row in made if row["at"] <= radius and is_lost(row)}
    return sum(row["right"] and row["id"] not in lost for row in rows) / len(rows) if rows else None


def is_lost(row: Mapping[str, Any]) -> bool:
    """Whether an attack changed an answer: beyond the image's radius a lost vote, within it a wrong certificate."""
    return bool(row["answer"] != row["guess"]) if row["at"] > row["radius"] else is_wrong(row)


def is_wrong(row: Mapping[str, Any]) -> bool:
    """Whether an attack proves a certificate wrong: within its radius, surely less than half of the draws answer the
    class that is certified.

    A vote that is merely lost proves nothing: near the radius, the probability may be a half and a little.

    Args:
        row: of ``schema.ATTACKED_CERTIFICATES``.
    """
    votes = row["votes"]
    found = stats.binomtest(votes[row["guess"]], sum(votes), alternative="less")
    return bool(found.proportion_ci(1 - 1e-6, "exact").high < 0.5)


def is_broken(wrong: int, drawn: int, alpha: float, cells: int) -> bool:
    """Whether more certificates of a cell are wrong than chance allows.

    Where all is right, this is so in one of the cells with a chance of at most 0.005.

    Args:
        wrong: certificates that an attack proved wrong.
        drawn: images that were drawn to be attacked, each of which may have a wrong one with a chance of ``alpha``.
        alpha: see ``drawn``.
        cells: how many there are.
    """
    return bool(wrong and stats.binom.sf(wrong - 1, drawn, alpha) <= 0.005 / cells)
