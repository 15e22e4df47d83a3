"""What the gradient attacks share: the input gradient of the cross-entropy, and checks of parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raypurify.attacks._active import margin, spread
from raypurify.attacks._graphs import Graphed

LARGEST_MARGIN = 10.0
"""Logits by which a label may be ahead in a cross-entropy. float32 resolves its gradient to 0.1% there, and not at all
from 17 on; smaller bounds weigh all the other classes alike, which weakens FGSM."""


def input_gradient(victim: nn.Module, x: Tensor, labels: Tensor, sign: int = 1) -> tuple[Tensor, Tensor]:
    """Gradient of each image's cross-entropy with respect to that image, and its margin.

    The cross-entropy of large logits is flat in float32, so that the gradient of a victim that is sure of itself would
    vanish: where the label is ahead by more than ``LARGEST_MARGIN``, the image's logits are scaled down to that. The
    sum over the batch is differentiated, so that an image's gradient does not depend on the batch, to rounding.

    Before a victim with a ``suspicion`` (see :class:`raypurify.attacks.Composite`), the gradient of a suspected image
    leads away from that too, in equal length; and to that alone where the victim is fooled already.

    Args:
        sign: 1 where an attack goes up the gradient, away from the labels; -1 where it goes down, towards them.

    Returns:
        the gradient (N, C, H, W), and :func:`ahead_of` (N,).
    """
    if isinstance(victim, Graphed):
        return victim.gradient(input_gradient, x, labels, sign)
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = victim(x).float()
        ahead = margin(logits.detach(), labels)
        scale = (ahead / LARGEST_MARGIN).clamp_min(1)
        loss = F.cross_entropy(logits / scale[:, None], labels, reduction="sum")
        gradient = slope(loss, x)
        if not hasattr(victim, "suspicion"):
            return gradient, ahead
        suspicion = victim.suspicion(x)  # type: ignore[operator]
        away = slope(suspicion.sum(), x)
    suspected = suspicion.detach() > 0
    length, other = (one.flatten(1).norm(dim=1).clamp_min(torch.finfo(one.dtype).tiny) for one in (gradient, away))
    pull = spread(sign * ahead >= 0, x) * gradient
    gradient = torch.where(spread(suspected, x), pull - sign * spread(length / other, x) * away, gradient)
    return gradient, _suspected(ahead, suspicion.detach(), sign)


def ahead_of(victim: nn.Module, x: Tensor, labels: Tensor, sign: int = 1) -> Tensor:
    """By how much the label's logit is ahead of the best other one (N,).

    An image that the victim suspects counts as one that does not fool it: the label is ahead, or behind with ``sign``
    -1, by what is suspected at least.
    """
    with torch.no_grad():
        ahead = margin(victim(x).float(), labels)
        if not hasattr(victim, "suspicion"):
            return ahead
        return _suspected(ahead, victim.suspicion(x), sign)  # type: ignore[operator]


def _suspected(ahead: Tensor, suspicion: Tensor, sign: int) -> Tensor:
    return torch.where(suspicion > 0, sign * ((sign * ahead).clamp_min(0) + suspicion), ahead)


def vanishes(gradient: Tensor) -> Tensor:
    """Which images' gradients (N, ...) are zero everywhere: (N,) bool."""
    return gradient.flatten(1).abs().amax(dim=1) == 0


def slope(total: Tensor, x: Tensor) -> Tensor:
    """Gradient of a scalar with respect to ``x``; 0 where it is not a number, so that an image stays an image.

    Raises:
        ValueError: see :func:`check_gradient`.
    """
    check_gradient(total)
    return torch.autograd.grad(total, x)[0].nan_to_num_()


def check_gradient(values: Tensor) -> None:
    """Raise ValueError unless a victim's logits, or what follows from them, have a gradient."""
    if not values.requires_grad:
        raise ValueError(
            "the victim's logits have no gradient, as under torch.no_grad or behind detach(); square takes none"
        )


def predicted(victim: nn.Module, x: Tensor) -> Tensor:
    """The victim's own labels: (N,) int64."""
    with torch.no_grad():
        return victim(x).argmax(dim=1)


def towards(victim: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, labels: str) -> tuple[Tensor, int]:
    """Which labels' loss an attack follows, and its sign: -1 goes down towards a target, +1 up from the label."""
    if target is not None:
        return target, -1
    return (predicted(victim, x) if labels == "predicted" else y), 1


def ball(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The least and the largest pixels of the images in the L-infinity ball around ``x`` and in [0, 1]."""
    return (x - epsilon).clamp_min_(0), (x + epsilon).clamp_max_(1)


def project(x_adv: Tensor, x: Tensor, epsilon: float) -> Tensor:
    """The nearest image in the L-infinity ball around ``x`` and in [0, 1]."""
    return x_adv.clamp(*ball(x, epsilon))


def check_epsilon(epsilon: float) -> None:
    """Raise ValueError unless 0 <= epsilon <= 1."""
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must be in [0, 1], on pixels in [0, 1]; got {epsilon!r}")


def check_labels(labels: str) -> None:
    """Raise ValueError unless ``labels`` is "true" or "predicted"."""
    if labels not in ("true", "predicted"):
        raise ValueError(f'labels must be "true" or "predicted"; got {labels!r}')
