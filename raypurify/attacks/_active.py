"""What attacks share that finish with each image in its own time: a done image leaves the batch and costs no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from raypurify.attacks import Attacked

AnyRows = TypeVar("AnyRows", bound="ActiveRows")


class ActiveRows:
    """A dataclass of tensors that have a row for each image that is still in the batch."""

    def select(self: AnyRows, keep: Tensor) -> AnyRows:
        """The rows for which ``keep`` (M,) is True."""
        if keep.all():
            return self
        of_self: Any = self
        return type(self)(**{field.name: getattr(self, field.name)[keep] for field in fields(of_self)})


class Effort:
    """Steps, queries and zero gradients of each image, as :class:`Attacked` reports them."""

    def __init__(self, x: Tensor) -> None:
        self.steps = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.queries = torch.zeros_like(self.steps)
        self.zero_gradient: Tensor | None = None

    def look(self, images: Tensor | slice = slice(None)) -> None:
        """Count a forward pass of these images (numbers)."""
        self.queries[images] += 1

    def step(self, images: Tensor | slice, *, backward: int = 1) -> None:
        """Count a gradient step of these images (numbers): one forward pass, and ``backward`` passes back."""
        self.steps[images] += 1
        self.queries[images] += 1 + backward

    def first_gradients(self, images: Tensor | slice, zero: Tensor) -> None:
        """Note which of these images' (numbers) first gradients were zero: (M,) bool."""
        self.zero_gradient = torch.zeros_like(self.steps, dtype=torch.bool)
        self.zero_gradient[images] = zero

    def attacked(self, x_adv: Tensor) -> Attacked:
        """The result, with what it took."""
        return Attacked(x_adv=x_adv, steps=self.steps, queries=self.queries, zero_gradient=self.zero_gradient)


def logits_of(victim: nn.Module, x: Tensor) -> Tensor:
    """The victim's logits without a graph: (N, K) float32."""
    with torch.no_grad():
        return victim(x).float()


def takes_shortcuts(x: Tensor) -> bool:
    """Whether gradients are computed in less than float32: under autocast, which an attack with ``mixes`` may be."""
    return torch.is_autocast_enabled(x.device.type)


@contextmanager
def exactly(x: Tensor, *, enabled: bool = True) -> Iterator[None]:
    """Compute in float32, even under autocast."""
    with torch.autocast(x.device.type, enabled=False) if enabled else nullcontext():
        yield


def verdict_of(victim: nn.Module, x: Tensor) -> Tensor:
    """As :func:`logits_of`, in float32 even under autocast."""
    with exactly(x):
        return logits_of(victim, x)


def begin_draws(victim: nn.Module, *part: object) -> None:
    """Begin a part of an attack before a victim that draws at random (:class:`raypurify.attacks.Composite`).

    What it draws in this part does not depend on how often it was called before, which may follow from other images of
    the batch. Other victims are left alone.
    """
    begin = getattr(victim, "begin_draws", None)
    if begin is not None:
        begin(*part)


def fools(logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """Which images are where the attack wants them: (N,) bool; ties go to the first class, as in every prediction.

    Logits that are not finite, as those of an image that is none any more, fool nobody.
    """
    predictions = logits.argmax(dim=1)
    there = predictions != y if target is None else predictions == target
    return there & logits.isfinite().all(dim=1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The logit of ``labels`` (N,) less the largest of the others: (N,)."""
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return logits.gather(1, labels[:, None])[:, 0] - others


def rivals(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """The ``count`` (or all) highest classes besides ``labels``: (N, count) int64."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def spread(value: Tensor, like: Tensor) -> Tensor:
    """(N,) as (N, 1, 1, 1), to be multiplied with images."""
    return value.view(-1, *[1] * (like.ndim - 1))
