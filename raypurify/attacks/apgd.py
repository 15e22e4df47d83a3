"""Auto-PGD in the L-infinity ball (Croce and Hein 2020, "Reliable evaluation of adversarial robustness ...")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raypurify.attacks import Attacked
from raypurify.attacks._active import begin_draws, margin
from raypurify.attacks._ascent import Ascent
from raypurify.attacks._gradients import check_epsilon, slope, vanishes
from raypurify.attacks._survivors import Survivors, check_counts, random_point
from raypurify.seeds import derive

MOMENTUM = 0.75
"""Weight of the gradient's step in a step; the rest is the step before, once there is one."""
FIRST_CHECK, SOONER, SOONEST = 0.22, 0.03, 0.06
"""Shares of the steps: up to the first check, by which each interval is shorter than the last, and the shortest."""


@dataclass(frozen=True, kw_only=True)
class APGD:
    """Gradient sign steps with momentum, first of two radii, halved for an image where its loss stalls.

    At checks ever closer together an image's step is halved, and its ascent goes on from its best point, where too few
    steps raised the loss, or where nothing did since a check that kept the step. Steps, checks and starts are those of
    the authors' code. An image that is fooled leaves the batch; of one that never is, the point comes back where its
    label was the least ahead. An image that is wrong at first comes back unmodified.
    """

    epsilon: float = 0.3
    """Radius of the L-infinity ball, on pixels in [0, 1]."""
    steps: int = 100
    """Gradient steps from each start."""
    loss: str | None = None
    """"ce", the cross-entropy, or "dlr", the difference of logits ratio, whose slope no scale of the logits changes;
    None: "dlr" if ``targeted``, else "ce"."""
    targeted: bool = False
    """Go towards other classes, one after the other (APGD-T)."""
    classes: int = 9
    """How many, those that score highest on the clean image, if ``targeted``."""
    restarts: int = 1
    """Random starts, for each class if ``targeted``."""
    rho: float = 0.75
    """Share of the steps since the last check that have to raise the loss if a step is to keep its length."""

    norm = "linf"

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_counts(self, "steps", "classes", "restarts")
        if self.loss not in (None, "ce", "dlr"):
            raise ValueError(f'loss must be "ce" or "dlr"; got {self.loss!r}')
        if not 0 < self.rho < 1:
            raise ValueError(f"rho must be above 0 and below 1; got {self.rho!r}")

    def __call__(
        self, victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Sequence[int], target: Tensor | None = None
    ) -> Attacked:
        """See :class:`raypurify.attacks.Attack`; the random starts come from ``seeds``."""
        found = Survivors(victim, x, y, target)
        goals: list[Tensor | None] = [None]
        if self.targeted or target is not None:
            goals = [*found.goals(self.classes)]
        for restart in range(self.restarts):
            for number, goal in enumerate(goals):
                images = found.images
                if not len(images):
                    break
                begin_draws(victim, self, restart, number)
                chosen = derive(found.seeds(seeds, images), "start", restart, number)
                flat = self.ascend(victim, found, images, goal, random_point(x[images], self.epsilon, chosen))
                if found.effort.zero_gradient is None:
                    found.effort.first_gradients(images, flat)
        return found.effort.attacked(found.best)

    def ascend(self, victim: nn.Module, found: Survivors, images: Tensor, goal: Tensor | None, x_adv: Tensor) -> Tensor:
        """One start of some images.

        Args:
            victim: as in the call.
            found: the images; it keeps the best points.
            images: (M,) numbers of those that start.
            goal: (N,) classes that all images go towards; None: away from their labels.
            x_adv: (M, C, H, W): where they start.

        Returns:
            Which gradients were zero where they started: (M,) bool.
        """
        logits, loss, gradient = self._evaluate(victim, found, images, goal, x_adv)
        found.effort.queries[images] += 2
        flat = vanishes(gradient)
        fooled = found.judge(images, x_adv, logits)
        ascent = Ascent.start(images, found.x[images], x_adv, loss, gradient, self.epsilon).select(~fooled)
        interval = next_check = max(int(FIRST_CHECK * self.steps), 1)
        for step in range(1, self.steps + 1):
            if not len(ascent.images):
                break
            ascent.move(1.0 if step == 1 else MOMENTUM)
            logits, loss, gradient = self._evaluate(victim, found, ascent.images, goal, ascent.x_adv)
            found.effort.step(ascent.images)
            fooled = found.judge(ascent.images, ascent.x_adv, logits)
            ascent.note(loss, gradient)
            if step == next_check:
                ascent.check(self.rho * interval)
                interval = max(interval - max(int(SOONER * self.steps), 1), int(SOONEST * self.steps), 1)
                next_check += interval
            ascent = ascent.select(~fooled)
        return flat

    def _evaluate(
        self, victim: nn.Module, found: Survivors, images: Tensor, goal: Tensor | None, x_adv: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (M, K), losses (M,) and their gradients (M, C, H, W)."""
        goals = None if goal is None else goal[images]
        measure = log_odds if self.loss == "ce" or (self.loss is None and not self.targeted) else logits_ratio
        with torch.enable_grad():
            x_adv = x_adv.detach().requires_grad_(True)
            logits = victim(x_adv).float()
            loss = measure(logits, found.y[images], goals)
            return logits.detach(), loss.detach(), slope(loss.sum(), x_adv)


def log_odds(logits: Tensor, labels: Tensor, goals: Tensor | None) -> Tensor:
    """log((1 - p) / p) of the label's probability p, or log(p / (1 - p)) of the goal's: (N,).

    The cross-entropy is log(1 + exp(log_odds)) of it, so that it orders points alike and its gradient has the same
    signs; but where the victim is sure of itself float32 knows no cross-entropy but 0, and the log-odds still.
    """
    classes = (labels if goals is None else goals)[:, None]
    odds = logits.scatter(1, classes, -torch.inf).logsumexp(dim=1) - logits.gather(1, classes)[:, 0]
    return odds if goals is None else -odds


def logits_ratio(logits: Tensor, labels: Tensor, goals: Tensor | None) -> Tensor:
    """The difference of logits ratio: (N,). By how much the best other class, or the goal, is ahead of the label, in
    units of a gap between the highest logits; in logits where there are too few classes to have that gap.
    """
    highest = logits.topk(min(4, logits.shape[1]), dim=1).values
    if goals is None:
        gain, needed = -margin(logits, labels), 3
    else:
        gain, needed = (logits.gather(1, goals[:, None]) - logits.gather(1, labels[:, None]))[:, 0], 4
    if logits.shape[1] < needed:
        return gain
    return gain / (highest[:, 0] - highest[:, 2:needed].mean(dim=1) + 1e-12)


build = APGD
