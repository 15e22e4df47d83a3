"""cGAN-Defense (the paper's reference 37): a generator from attacked images to clean ones, against a discriminator.

It is pix2pix (Isola et al. 2017) at the size of small images: a U-Net, a discriminator of patches, and an L1 loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raypurify.purifiers._generative import cross_entropy
from raypurify.training.batches import Batch
from raypurify.training.objectives import NETWORK, PurifierObjective, Setup

STEEP = 8.0
"""Pixels of 0 and 1 are 4 to each side of 0 before the last sigmoid."""


@dataclass(frozen=True, kw_only=True)
class CGANConfig:
    """Its authors' numbers were not found; those of pix2pix are taken where they fit."""

    channels: int = 1
    width: int = 32
    """Maps of the first layer, of the generator and of the discriminator; each level below doubles them."""
    l1_weight: float = 100.0
    """Weight of the mean absolute error, beside the discriminator's loss."""

    def __post_init__(self) -> None:
        if min(self.channels, self.width) < 1:
            raise ValueError(f"channels and width must be at least 1; got {self.channels!r} and {self.width!r}")
        if self.l1_weight < 0:
            raise ValueError(f"l1_weight must be at least 0; got {self.l1_weight!r}")


class CGAN(nn.Module):
    """The generator: a U-Net of four levels, whose output is the image itself.

    The image that comes in is added before the last sigmoid, so that the network starts near the identity. Without, and
    without normalisation layers, it falls to black images, which L1 likes well, and stays there.
    """

    multiple = 8
    reach = 32

    def __init__(self, config: CGANConfig) -> None:
        super().__init__()
        self.config = config
        levels = list(pairwise(config.width * factor for factor in (1, 2, 4, 8)))

        def conv(into: int, out: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(into, out, 3, stride=stride, padding=1), nn.LeakyReLU(0.2))

        def up(into: int, out: int) -> nn.Sequential:
            return nn.Sequential(nn.ConvTranspose2d(into, out, 2, stride=2), nn.LeakyReLU(0.2))

        self.first = conv(config.channels, config.width)
        self.down = nn.ModuleList(conv(above, below, 2) for above, below in levels)
        self.middle = conv(8 * config.width, 8 * config.width)
        self.up = nn.ModuleList(up(below, above) for above, below in reversed(levels))
        self.merge = nn.ModuleList(conv(2 * above, above) for above, _ in reversed(levels[1:]))
        self.output = nn.Conv2d(2 * config.width, config.channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same shape and range."""
        height, width = x.shape[2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        h = self.first(F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x)
        passed = []
        for down in self.down:
            passed.append(h)
            h = down(h)
        h = self.middle(h)
        for up, merge in zip(self.up, (*self.merge, self.output), strict=True):
            h = merge(torch.cat([up(h), passed.pop()], dim=1))
        return torch.sigmoid(h.float()[..., :height, :width] + STEEP * (x - 0.5))


class Discriminator(nn.Module):
    """An attacked image and a candidate for its clean one, to a logit for each patch: high for real ones."""

    def __init__(self, config: CGANConfig) -> None:
        super().__init__()
        width = config.width
        self.layers = nn.Sequential(
            nn.Conv2d(2 * config.channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 3, padding=1),
        )

    def forward(self, x_adv: Tensor, candidate: Tensor) -> Tensor:
        """Two of (N, C, H, W) -> (N, 1, H / 4, W / 4)."""
        logits: Tensor = self.layers(torch.cat([x_adv, candidate], dim=1)).float()
        return logits


class ConditionalObjective(PurifierObjective):
    """One step of the discriminator, and one of the generator, on the same pairs; Adam (0.5, 0.999), as pix2pix."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        adam = partial(torch.optim.AdamW, betas=(0.5, 0.999))
        self.generator = cast(CGAN, setup.network)
        self.optimizations[NETWORK] = setup.optimization(setup.network, optimizer=adam)
        self.discriminator = self.train_beside("discriminator", Discriminator(self.generator.config), optimizer=adam)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """See :meth:`Objective.step`: ``loss`` is the generator's."""
        self.begin(step)
        return self.learn(self._update, step, *self.pairs(batch))

    def _update(self, x_adv: Tensor, x: Tensor) -> dict[str, Tensor]:
        restored = self.generator(x_adv)
        told = cross_entropy(self.discriminator(x_adv, x), 1.0)
        told = (told + cross_entropy(self.discriminator(x_adv, restored.detach()), 0.0)) / 2
        told = self.optimizations["discriminator"].descend(told)
        loss = self.generator.config.l1_weight * F.l1_loss(restored, x)
        loss = loss + cross_entropy(self.discriminator(x_adv, restored), 1.0)
        return {"loss": self.optimizations[NETWORK].descend(loss), "discriminator": told}


def build(**params: Any) -> CGAN:
    """The generator with random weights; ``params`` are :class:`CGANConfig`'s fields."""
    return CGAN(CGANConfig(**params))


def params_for(image_shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    """The channels of (H, W, C) images; their size and their classes do not matter."""
    return {"channels": image_shape[2]}


objective = ConditionalObjective
