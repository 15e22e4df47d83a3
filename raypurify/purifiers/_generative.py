"""What Defense-GAN and DRAGAN-Defense share: a generator of clean images, and the projection on what it can make."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raypurify.seeds import derive, normal
from raypurify.training.batches import Batch
from raypurify.training.objectives import NETWORK, Objective, Setup

AT_ONCE = 1024
"""Latents, of all restarts and images, that one descent is of at most."""
COARSE, FINE = 0.8, 0.1
"""After this share of the steps the rate falls to this share of it."""
PENALTY = 10.0
"""Weight of a gradient's penalty."""


@dataclass(frozen=True, kw_only=True)
class GenerativeConfig:
    """The generator, and the projection on its range."""

    image_size: int = 28
    """Height and width, in pixels."""
    channels: int = 1
    latent: int = 128
    """Numbers that the generator makes an image of."""
    width: int = 64
    """Maps of the generator's last hidden layer, and of the critic's first; each layer inwards doubles them."""
    restarts: int = 10
    """Descents of each image, from latents of their own; the nearest image is kept (R). They begin at the prior, normal
    numbers of deviation 1; in Defense-GAN's code they begin nearer to zero, at the root of 1 / ``latent``."""
    steps: int = 200
    """Steps of each descent (L)."""
    rate: float = 10.0
    """Of a descent, on an image's mean squared error; a tenth of it after four fifths of the steps."""
    momentum: float = 0.7
    unrolled: bool = False
    """An attacker who knows the purifier goes through all the steps of the descent, at the price of their memory;
    else around them (BPDA)."""

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "latent", "width", "restarts", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)!r}")
        if self.rate <= 0 or not 0 <= self.momentum < 1:
            raise ValueError(f"rate must be above 0 and momentum in [0, 1); got {self.rate!r} and {self.momentum!r}")

    @property
    def sides(self) -> list[int]:
        """Heights of the maps, from the innermost to the image: 4, 7, 14, 28."""
        sides = [self.image_size]
        for _ in range(3):
            sides.append((sides[-1] + 1) // 2)
        return sides[::-1]

    @property
    def widths(self) -> list[int]:
        """Maps of the hidden layers, from the innermost on."""
        return [4 * self.width, 2 * self.width, self.width]


class Generator(nn.Module):
    """Latents to images: a fully connected layer, and three transposed convolutions, 5x5, that double the sides.

    It is Gulrajani et al.'s (2017) of MNIST, which Defense-GAN took.
    """

    def __init__(self, config: GenerativeConfig) -> None:
        super().__init__()
        self.config = config
        sides, widths = config.sides, [*config.widths, config.channels]
        self.first = nn.Linear(config.latent, widths[0] * sides[0] ** 2)
        self.layers = nn.ModuleList(
            nn.ConvTranspose2d(into, out, 5, stride=2, padding=2, output_padding=larger - (2 * smaller - 1))
            for (into, out), (smaller, larger) in zip(
                itertools.pairwise(widths), itertools.pairwise(sides), strict=True
            )
        )
        _he(self)

    def forward(self, z: Tensor) -> Tensor:
        """(N, latent) -> (N, C, H, W) in [0, 1]."""
        side, maps = self.config.sides[0], self.config.widths[0]
        h = F.relu(self.first(z)).view(len(z), maps, side, side)
        h = h.contiguous(memory_format=torch.channels_last)
        for number, layer in enumerate(self.layers):
            h = F.relu(h) if number else h
            h = layer(h)
        return torch.sigmoid(h.float())


class Critic(nn.Module):
    """Images to a number each, high for real ones: three convolutions, 5x5, of stride 2, and a linear layer."""

    def __init__(self, config: GenerativeConfig) -> None:
        super().__init__()
        widths = [config.channels, *config.widths[::-1]]
        convolutions = [nn.Conv2d(into, out, 5, stride=2, padding=2) for into, out in itertools.pairwise(widths)]
        self.layers = nn.Sequential(*(part for one in convolutions for part in (one, nn.LeakyReLU(0.2))))
        self.last = nn.Linear(widths[-1] * config.sides[0] ** 2, 1)
        _he(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N,)."""
        return cast(Tensor, self.last(self.layers(x).flatten(1)))[:, 0]


def _he(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(cast(nn.Parameter, module.bias))


class Projection(nn.Module):
    """An image's nearest one in the generator's range, found by descents from random latents (Samangouei et al. 2018).

    All restarts of all images of a batch are one descent, whose steps are each image's own. It knows no classifier.
    """

    random: ClassVar[bool] = True
    universal: ClassVar[bool] = True

    def __init__(self, config: GenerativeConfig) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config)
        self.differentiable = config.unrolled

    def forward(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same; one seed for each image, of the latents that its descents begin at."""
        if x.shape[2:] != (self.config.image_size,) * 2:
            # The descent has a size of its own, and would fail at the difference.
            raise RuntimeError(f"expected images of {self.config.image_size} pixels a side, got {tuple(x.shape[2:])}")
        each = max(1, AT_ONCE // self.config.restarts)
        parts = [self.project(x[start : start + each], seeds[start : start + each]) for start in range(0, len(x), each)]
        return torch.cat(parts)

    def project(
        self, x: Tensor, seeds: Sequence[int], *, restarts: int | None = None, steps: int | None = None
    ) -> Tensor:
        """The projections of a few images.

        Args:
            x: (N, C, H, W).
            seeds: one for each image.
            restarts: the config's if None; likewise ``steps``.
        """
        restarts, steps = restarts or self.config.restarts, steps or self.config.steps
        through = self.config.unrolled and torch.is_grad_enabled() and x.requires_grad
        z = torch.cat([latents(derive(seeds, restart), self.config, x.device) for restart in range(restarts)])
        wanted = x.repeat(restarts, 1, 1, 1)
        velocity = torch.zeros_like(z)
        for step in range(steps):
            rate = self.config.rate * (1 if step < COARSE * steps else FINE)
            with torch.enable_grad():
                z = z if through and step else z.detach().requires_grad_()
                slope = torch.autograd.grad(self._errors(z, wanted).sum(), z, create_graph=through)[0]
            velocity = self.config.momentum * velocity - rate * slope
            z = z + velocity
        with torch.set_grad_enabled(through):
            made = self.generator(z)
            errors = (made - wanted).flatten(1).square().mean(dim=1)
            best = errors.view(restarts, len(x)).argmin(dim=0)
            return made[best * len(x) + torch.arange(len(x), device=x.device)]

    def _errors(self, z: Tensor, wanted: Tensor) -> Tensor:
        """Each latent's mean squared error: (N,)."""
        errors: Tensor = (self.generator(z) - wanted).flatten(1).square().mean(dim=1)
        return errors


def latents(seeds: Sequence[int], config: GenerativeConfig, device: torch.device) -> Tensor:
    """(N, latent) standard normal numbers, each row of its own seed."""
    return normal(derive(seeds, "latent"), torch.empty(len(seeds), config.latent, device=device))


class GenerativeObjective(Objective):
    """A generator and a critic, which learn from clean images. The attacks of the config are not made."""

    criterion = None
    critic_steps = 1
    """Steps of the critic for each of the generator."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        # Not Adam, which would add the config's weight decay to the gradients; neither paper has any.
        adam = partial(torch.optim.AdamW, betas=(0.5, 0.9))
        self.projection = cast(Projection, setup.network)
        self.optimizations[NETWORK] = setup.optimization(setup.network, optimizer=adam)
        self.critic = self.train_beside("critic", Critic(self.projection.config), optimizer=adam)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """See :meth:`Objective.step`; it is computed in float32, since the slope of a slope needs it."""
        with torch.autocast(batch.x.device.type, enabled=False):
            told = self.learn(self._critic_update, step, batch.x, self.latents(batch, "critic"), self.draws(batch))
            if (step + 1) % self.critic_steps == 0:
                self.learn(self._generator_update, step, self.latents(batch, "generator"))
        return told

    def latents(self, batch: Batch, player: str) -> Tensor:
        """(N, latent) numbers that a player's images are made of, by the seeds of a batch."""
        return latents(derive(batch.seeds, player), self.projection.config, batch.x.device)

    def _critic_update(self, real: Tensor, z: Tensor, draws: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            fake = self.projection.generator(z)
        loss, told = self.of_critic(real, fake, draws)
        self.optimizations["critic"].descend(loss)
        return {name: value.detach() for name, value in told.items()}

    def _generator_update(self, z: Tensor) -> dict[str, Tensor]:
        return {"loss": self.optimizations[NETWORK].descend(self.of_generator(self.projection.generator(z)))}

    def draws(self, batch: Batch) -> Tensor:
        """Uniform numbers in [0, 1) that :meth:`of_critic` wants, by the seeds of a batch."""
        raise NotImplementedError

    def of_critic(self, real: Tensor, fake: Tensor, draws: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic's loss, and figures of the step, ``loss`` among them."""
        raise NotImplementedError

    def of_generator(self, fake: Tensor) -> Tensor:
        """The generator's loss."""
        raise NotImplementedError

    def penalty(self, points: Tensor) -> Tensor:
        """How far the critic's slope at some images is from length 1: the mean of the squares."""
        points = points.detach().requires_grad_()
        slope = torch.autograd.grad(self.critic(points).sum(), points, create_graph=True)[0]
        return (slope.flatten(1).norm(dim=1) - 1).square().mean()

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Clean images that are classified right once projected, by one short descent, and their errors."""
        projected = self.projection.project(batch.x, batch.seeds, restarts=1, steps=50)
        classifier = cast(nn.Module, self.setup.classifier)
        return {
            "accuracy_clean_purified": (classifier(projected).argmax(dim=1) == batch.y).sum(),
            "error": (projected - batch.x).flatten(1).square().mean(dim=1).sum(),
        }


def cross_entropy(logits: Tensor, wanted: float) -> Tensor:
    """Of a discriminator's logits, all of which should say 1, real, or 0, generated: a scalar."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, wanted))


def params_for(image_shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    """The size and the channels of (H, W, C) images; their classes do not matter."""
    height, width, channels = image_shape
    if height != width:
        raise ValueError(f"expected square images; got (H, W, C) = {image_shape}")
    return {"image_size": height, "channels": channels}
