"""Where the images of an Auto-PGD stand, and how they go on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raypurify.attacks._active import ActiveRows, spread
from raypurify.attacks._gradients import ball


@dataclass(kw_only=True)
class Ascent(ActiveRows):
    """The images that are still in the batch, a row each in every field."""

    images: Tensor
    """(M,) int64: their numbers in the whole batch."""
    low: Tensor
    """(M, C, H, W), as all up to ``best_gradient``: the least pixels of the ball."""
    high: Tensor
    x_adv: Tensor
    before: Tensor
    """The point before the last step."""
    gradient: Tensor
    best: Tensor
    """The point with the highest loss."""
    best_gradient: Tensor
    loss: Tensor
    """(M,): after the last step."""
    highest: Tensor
    """(M,): of all steps."""
    highest_at_check: Tensor
    """(M,): the same at the last check."""
    halved: Tensor
    """(M,) bool: whether the last check halved the step."""
    rises: Tensor
    """(M,) int64: steps since the last check that raised the loss."""
    length: Tensor
    """(M,): of a step."""

    @classmethod
    def start(cls, images: Tensor, x: Tensor, x_adv: Tensor, loss: Tensor, gradient: Tensor, epsilon: float) -> Ascent:
        """The ascent of these images (M,), numbers of clean images ``x`` (M, C, H, W), from ``x_adv``."""
        low, high = ball(x, epsilon)
        return cls(
            images=images,
            low=low,
            high=high,
            x_adv=x_adv,
            before=x_adv,
            gradient=gradient,
            best=x_adv,
            best_gradient=gradient,
            loss=loss,
            highest=loss,
            highest_at_check=loss,
            halved=torch.ones_like(images, dtype=torch.bool),
            rises=torch.zeros_like(images),
            length=torch.full_like(loss, 2 * epsilon),
        )

    def move(self, share: float) -> None:
        """One step, of which ``share`` follows the gradient and the rest goes on as before."""
        ahead = (self.x_adv + spread(self.length, self.x_adv) * self.gradient.sign()).clamp(self.low, self.high)
        moved = self.x_adv + share * (ahead - self.x_adv) + (1 - share) * (self.x_adv - self.before)
        self.before, self.x_adv = self.x_adv, moved.clamp(self.low, self.high)

    def note(self, loss: Tensor, gradient: Tensor) -> None:
        """Take in the losses and gradients after a step."""
        self.rises = self.rises + (loss > self.loss)
        self.loss, self.gradient = loss, gradient
        better = loss > self.highest
        self.highest = torch.where(better, loss, self.highest)
        self.best = torch.where(spread(better, self.best), self.x_adv, self.best)
        self.best_gradient = torch.where(spread(better, self.best), gradient, self.best_gradient)

    def check(self, least: float) -> None:
        """Halve the steps of images that stall, and put these back to their best points: those of which not more than
        ``least`` steps raised the loss, and those that found nothing better since a check that kept their step."""
        stalled = (self.rises <= least) | (~self.halved & (self.highest_at_check >= self.highest))
        self.length = torch.where(stalled, self.length / 2, self.length)
        self.x_adv = torch.where(spread(stalled, self.best), self.best, self.x_adv)
        self.gradient = torch.where(spread(stalled, self.best), self.best_gradient, self.gradient)
        self.halved, self.highest_at_check, self.rises = stalled, self.highest, torch.zeros_like(self.rises)
