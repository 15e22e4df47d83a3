"""Does a defense only hide its gradient? Five attacks that tell (Athalye et al. 2018; Carlini et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raypurify import plugins
from raypurify.attacks import Attack
from raypurify.attacks._active import begin_draws, fools, logits_of
from raypurify.attacks._gradients import input_gradient, vanishes
from raypurify.attacks.fgsm import FGSM
from raypurify.attacks.pgd import PGD
from raypurify.seeds import derive, normal

DIFFERENCE = 0.01
"""Share of the images by which one attack has to beat another before a finding is reported."""
REACH = 0.9
"""Share of its radius, or of the half of the pixels' range that every pixel can move by, that an attack has to use."""
ZERO = 0.05
"""Share of the images whose gradient may vanish, and accuracy that may be left at epsilon 1."""

FINDINGS: Mapping[str, str] = {
    "zero_gradient": "the gradient vanishes on many images",
    "single_step": "one step of the gradient is stronger than many",
    "random_search": "random search is stronger than the gradient",
    "unbounded": "images survive an attack that may change every pixel at will",
    "straight_through": "the attack gains from a gradient through the purifier's last clip",
}
"""What the check can find, by the name that ``summary.parquet`` gives it."""


@dataclass(frozen=True, kw_only=True)
class MaskingCheck:
    """Attacks in an L-infinity ball that tell a robust victim from one whose gradient misleads the attacker."""

    epsilon: float = 0.3
    """Radius of the ball."""
    steps: int = 20
    """How many steps the attacks with several steps take."""
    restarts: int = 3
    """How many starts these attacks have."""
    draws: int = 50
    """How many corners of the ball the random search tries."""

    def __call__(
        self, victim: nn.Module, straight_through: nn.Module | None, x: Tensor, y: Tensor, *, seeds: Sequence[int]
    ) -> dict[str, Tensor]:
        """Attack a batch in every way.

        Args:
            victim: what the adaptive attacker attacks.
            straight_through: the same, its last clip without effect on gradients; None where there is no clip.
            x: (N, C, H, W) float32 in [0, 1].
            y: (N,) int64 labels.
            seeds: one for each image.

        Returns:
            ``zero_gradient`` (N,) bool; ``pred_multi_step``, ``pred_single_step``, ``pred_random_search``,
            ``pred_unbounded`` and, where it was given, ``pred_straight_through`` (N,) int64: the victim's predictions.
        """
        ball = PGD(epsilon=self.epsilon, steps=self.steps, restarts=self.restarts)
        unbounded = PGD(epsilon=1.0, steps=self.steps, restarts=self.restarts)
        attacks: dict[str, tuple[Attack, nn.Module]] = {
            "single_step": (FGSM(epsilon=self.epsilon), victim),
            "multi_step": (ball, victim),
            "unbounded": (unbounded, victim),
        }
        if straight_through is not None:
            attacks["straight_through"] = ball, straight_through
        result = {"zero_gradient": vanishes(input_gradient(victim, x, y)[0])}
        for name, (attack, attacked) in attacks.items():
            begin_draws(attacked, name)
            x_adv = attack(attacked, x, y, seeds=seeds).x_adv
            result[f"pred_{name}"] = _verdict(victim, x_adv)
        begin_draws(victim, "random search")
        result["pred_random_search"] = _verdict(victim, self._random_search(victim, x, y, seeds))
        return result

    def _random_search(self, victim: nn.Module, x: Tensor, y: Tensor, seeds: Sequence[int]) -> Tensor:
        """The first corner of the ball that fools the victim, or the last one tried.

        A random victim is wrong on the luckiest of many draws by itself: predict the corner again.
        """
        chosen = x.clone()
        active = torch.nonzero(~fools(logits_of(victim, x), y, None)).flatten()
        for draw in range(self.draws):
            if not len(active):
                break
            drawn = derive([seeds[index] for index in active.tolist()], "random search", draw)
            chosen[active] = (x[active] + self.epsilon * normal(drawn, x[active]).sign()).clamp(0, 1)
            active = active[~fools(logits_of(victim, chosen[active]), y[active], None)]
        return chosen


def _verdict(victim: nn.Module, x_adv: Tensor) -> Tensor:
    """Predictions, with draws that no attack has seen."""
    begin_draws(victim, "verdict")
    return logits_of(victim, x_adv).argmax(dim=1)


def weaknesses(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on attacks whose figures flatter every defense, in cells whose gradients were not checked; each once.

    Args:
        rows: rows of ``schema.SUMMARY``.
    """
    found = []
    for row in rows:
        radius = "" if row["eps"] is None else f" (ε = {plugins.shown(row['eps'])})"
        name = f"{row['attack']}{radius} on {row['victim']}"
        share, survived = row["zero_gradient_share"] or 0, row["accuracy_adversarial"] or row["accuracy_purified"]
        if row["masking"] is None and share > ZERO:
            found.append(f"{name}: {FINDINGS['zero_gradient']} ({share:.1%}), which the attack can't follow")
        in_ball = row["norm"] == "linf" and row["eps"] is not None
        if survived and in_ball and row["linf_max"] < REACH * min(row["eps"], 0.5):
            found.append(
                f"{name}: no pixel moved by more than {row['linf_max']:.3g}; longer or more steps would use the ball"
            )
    return list(dict.fromkeys(found))


def findings(figures: Mapping[str, float | None]) -> list[str]:
    """Which of :data:`FINDINGS` a cell's figures show.

    Args:
        figures: ``zero_gradient_share``, and the accuracies ``accuracy_multi_step``, ``accuracy_single_step``,
            ``accuracy_random_search``, ``accuracy_unbounded``, ``accuracy_straight_through``; None: not known.
    """

    def beats_gradient(name: str) -> bool:
        accuracy, reference = figures[f"accuracy_{name}"], figures["accuracy_multi_step"]
        return accuracy is not None and reference is not None and accuracy < reference - DIFFERENCE

    found = {name: beats_gradient(name) for name in ("single_step", "random_search", "straight_through")}
    found["zero_gradient"] = (figures["zero_gradient_share"] or 0) > ZERO
    found["unbounded"] = (figures["accuracy_unbounded"] or 0) > ZERO
    return [name for name in FINDINGS if found[name]]
