"""Losses in what a classifier answers to adversarial images and to clean ones."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raypurify.training.config import TrainingConfig


def loss_of_answers(
    classifier: nn.Module, config: TrainingConfig, restored: Tensor, x: Tensor, clean: Tensor, y: Tensor
) -> Tensor:
    """The losses of ``config`` that ask the frozen classifier behind a purifier, each by its weight.

    Args:
        classifier: (N, C, H, W) -> logits (N, K).
        config: has the weights.
        restored: purified adversarial images; where ``consistency_weight`` is above 0, half are one draw of them, and
            half are another, in the same order.
        x: the clean images that these were made of.
        clean: the same, purified; it is looked at where ``kl_weight`` is above 0.
        y: (N,) int64, the true labels.

    Returns:
        The mean over the images.
    """
    loss = restored.new_zeros(())
    if config.feature_weight:
        logits, features = logits_and_features(classifier, restored)
        with torch.no_grad():
            expected_logits, expected = logits_and_features(classifier, x)
        loss = loss + config.feature_weight * F.mse_loss(features.float(), expected.float())
    else:
        logits = classifier(restored)
        with torch.no_grad():
            expected_logits = classifier(x) if config.logit_weight or config.stability_weight else logits
    if config.logit_weight:
        loss = loss + config.logit_weight * F.l1_loss(logits.float(), expected_logits.float())
    if config.label_weight:
        loss = loss + config.label_weight * F.cross_entropy(logits.float(), y)
    if config.stability_weight:
        loss = loss + config.stability_weight * F.cross_entropy(logits.float(), expected_logits.argmax(dim=1))
    if config.consistency_weight:
        loss = loss + config.consistency_weight * inconsistency(*logits.chunk(2))
    if config.kl_weight:
        loss = loss + config.kl_weight * divergence(classifier(clean), logits)
    return loss


def divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """How far answers to adversarial images are from those to clean ones: the Kullback-Leibler divergence, a scalar.

    Args:
        clean: logits (N, K).
        adversarial: logits (N, K).
    """
    found, expected = (F.log_softmax(logits.float(), dim=1) for logits in (adversarial, clean))
    return F.kl_div(found, expected, reduction="batchmean", log_target=True)


def inconsistency(first: Tensor, second: Tensor) -> Tensor:
    """How far the answers to two draws are from their mean: the mean Kullback-Leibler divergence, a scalar.

    It is the regularisation of Jeong and Shin (2020, arXiv 2006.04062) for two draws, without their term of entropy.

    Args:
        first: logits (N, K).
        second: logits (N, K) of the same images.
    """
    draws = torch.stack([F.log_softmax(logits.float(), dim=1) for logits in (first, second)])
    mean = (draws.logsumexp(dim=0) - math.log(2)).expand_as(draws)
    return F.kl_div(draws, mean, reduction="none", log_target=True).sum(dim=2).mean()


def logits_and_features(classifier: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """A classifier's logits (N, K), and what entered its last linear layer (N, D)."""
    entered: list[Tensor] = []

    def note(layer: nn.Module, inputs: Any) -> None:
        entered.append(inputs[0])

    handle = last_linear(classifier).register_forward_pre_hook(note)
    try:
        logits = classifier(x)
    finally:
        handle.remove()
    return logits, entered[-1]


def last_linear(classifier: nn.Module) -> nn.Linear:
    """The linear layer that a classifier names last.

    Raises:
        ValueError: it has none.
    """
    layers = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(
            f"feature_weight: {type(classifier).__name__} has no linear layer, whose input would be its features. "
            "Leave it out"
        )
    return layers[-1]
