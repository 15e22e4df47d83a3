"""What the gradient attacks share: the input gradient of the cross-entropy, and checks of parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raypurify.attacks._active import margin

LARGEST_MARGIN = 10.0
"""Logits by which a label may be ahead in a cross-entropy. float32 resolves its gradient to 0.1% there, and not at all
from 17 on; smaller bounds weigh all the other classes alike, which weakens FGSM."""


def input_gradient(victim: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of each image's cross-entropy with respect to that image, and its margin.

    The cross-entropy of large logits is flat in float32, so that the gradient of a victim that is sure of itself would
    vanish: where the label is ahead by more than ``LARGEST_MARGIN``, the image's logits are scaled down to that. The
    sum over the batch is differentiated, so that an image's gradient does not depend on the batch, to rounding.

    Returns:
        the gradient (N, C, H, W), and by how much the label's logit is ahead of the best other one (N,).
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = victim(x).float()
        ahead = margin(logits.detach(), labels)
        scale = (ahead / LARGEST_MARGIN).clamp_min(1)
        loss = F.cross_entropy(logits / scale[:, None], labels, reduction="sum")
        return slope(loss, x), ahead


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
