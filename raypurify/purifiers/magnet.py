"""MagNet (Meng and Chen 2017): autoencoders that restore an image, and detectors that tell what they could not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raypurify.seeds import derive, normal
from raypurify.training.batches import Batch, augment
from raypurify.training.objectives import PurifierObjective

SIGMOID = 4.0
"""Factor of the first weights before a sigmoid."""
NEVER = torch.finfo(torch.float32).max
"""A threshold that nothing exceeds."""


@dataclass(frozen=True, kw_only=True)
class MagNetConfig:
    """Its authors' settings for MNIST are the defaults; :func:`params_for` has those for colour images."""

    channels: int = 1
    maps: int = 3
    """Maps of each hidden layer."""
    pooled: bool = True
    """The reformer halves the image in between. Without, it is like the second autoencoder."""
    noise: float = 0.1
    """Standard deviation of the noise that a training adds to its images, which are clipped to [0, 1]."""
    drop: float = 0.001
    """Share of the held-out clean images that each detector by reconstruction takes for attacked."""
    temperatures: tuple[float, ...] = ()
    """Of the detectors that compare what the classifier says of an image and of the restored one, by the divergence of
    Jensen and Shannon; without any there are none."""
    divergence_drop: float = 0.01
    """As ``drop``, of those."""

    def __post_init__(self) -> None:
        if min(self.channels, self.maps) < 1:
            raise ValueError(f"channels and maps must be at least 1; got {self.channels!r} and {self.maps!r}")
        if self.noise < 0 or not all(0 < drop < 1 for drop in (self.drop, self.divergence_drop)):
            raise ValueError(f"noise must be at least 0, and drop and divergence_drop in (0, 1); got {self}")
        if any(temperature <= 0 for temperature in self.temperatures):
            raise ValueError(f"temperatures must be above 0; got {self.temperatures!r}")


class AutoEncoder(nn.Module):
    """Convolutions of 3x3 with sigmoids; with ``pooled``, the image is half as large between them.

    Weights start as Glorot and Bengio (2010) draw them for sigmoids. From PyTorch's own start it does not leave a grey
    image for thousands of steps.
    """

    def __init__(self, config: MagNetConfig, *, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled

        def conv(into: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(into, config.maps, 3, padding=1), nn.Sigmoid())

        self.encoder = nn.ModuleList([conv(config.channels), *([conv(config.maps)] if pooled else [])])
        self.decoder = nn.ModuleList(conv(config.maps) for _ in range(2 if pooled else 1))
        self.output = nn.Conv2d(config.maps, config.channels, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight, gain=SIGMOID)
                nn.init.zeros_(cast(nn.Parameter, module.bias))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W) in [0, 1]."""
        height, width = x.shape[2:]
        if self.pooled and (height % 2 or width % 2):
            x = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
        h = self.encoder[0](x)
        if self.pooled:
            h = self.decoder[0](self.encoder[1](F.avg_pool2d(h, 2)))
            h = F.interpolate(h, scale_factor=2.0, mode="nearest")
        return torch.sigmoid(self.output(self.decoder[-1](h)).float())[..., :height, :width]


class MagNet(nn.Module):
    """The reformer, and the detectors whose thresholds a training sets on held-out clean images.

    Detectors: the mean squared error of the reformer's image (p = 2), the mean absolute error of the second
    autoencoder's (p = 1), and divergences at ``temperatures`` between the classifier's answers, where a classifier is
    given. An image is taken for attacked where one of them exceeds its threshold.
    """

    universal: ClassVar[bool] = True
    asks_classifier: ClassVar[bool] = True
    thresholds: Tensor

    def __init__(self, config: MagNetConfig) -> None:
        super().__init__()
        self.config = config
        self.multiple, self.reach = (2, 10) if config.pooled else (1, 3)
        self.reformer = AutoEncoder(config, pooled=config.pooled)
        self.second = AutoEncoder(config, pooled=False)
        self.register_buffer("thresholds", torch.full((2 + len(config.temperatures),), NEVER))

    @property
    def drops(self) -> list[float]:
        """Of each detector, the share of clean images that it takes for attacked."""
        return [self.config.drop] * 2 + [self.config.divergence_drop] * len(self.config.temperatures)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the restored images."""
        return cast(Tensor, self.reformer(x))

    def evidence(self, x: Tensor, classifier: nn.Module | None) -> Tensor:
        """What the detectors measure: (N, detectors); of those that ask a classifier, 0 without one."""
        restored = self.reformer(x)
        found = [
            (x - restored).flatten(1).square().mean(dim=1),
            (x - self.second(x)).flatten(1).abs().mean(dim=1),
        ]
        if self.config.temperatures and classifier is not None:
            own, others = classifier(x).float(), classifier(restored).float()
            found += [_divergence(own / t, others / t) for t in self.config.temperatures]
        else:
            found += [torch.zeros_like(found[0])] * len(self.config.temperatures)
        return torch.stack(found, dim=1)

    def suspicion(self, x: Tensor, classifier: nn.Module | None = None) -> Tensor:
        """By which share a detector is above its threshold, the highest of them: (N,), above 0 where detected."""
        return (self.evidence(x, classifier) / self.thresholds).amax(dim=1) - 1

    def detect(self, x: Tensor, classifier: nn.Module | None = None) -> Tensor:
        """Which images are taken for attacked: (N,) bool."""
        return self.suspicion(x, classifier) > 0


def _divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Jensen and Shannon's divergence of two classifications: (N,), in nats."""
    own, theirs = logits.softmax(dim=1), others.softmax(dim=1)
    middle = ((own + theirs) / 2).clamp_min(1e-12).log()
    parts = [(one * (one.clamp_min(1e-12).log() - middle)).sum(dim=1) for one in (own, theirs)]
    return (parts[0] + parts[1]) / 2


class MagNetObjective(PurifierObjective):
    """Both autoencoders' squared error on noisy clean images; no attack is made but to score. Then the thresholds.

    Its authors: Adam, 100 epochs, batches of 256.
    """

    calibrates = True

    def tensors(self, batch: Batch) -> tuple[Tensor, ...]:
        """Noisy images and clean ones."""
        x = augment(batch.x, batch.seeds, self.setup.config.augmentation)
        noise = cast(MagNet, self.setup.network).config.noise
        return (x + noise * normal(derive(batch.seeds, "noise"), x)).clamp(0, 1), x

    def loss_of(self, *tensors: Tensor) -> Tensor:
        network = cast(MagNet, self.setup.network)
        noisy, x = tensors
        return F.mse_loss(network.reformer(noisy), x) + F.mse_loss(network.second(noisy), x)

    def measured(self, batch: Batch) -> Tensor:
        """See :meth:`Objective.measured`."""
        return cast(MagNet, self.setup.network).evidence(batch.x, self.setup.classifier)

    def calibrate(self, values: Tensor) -> None:
        """See :meth:`Objective.calibrate`: each threshold is exceeded by its share of the images at most."""
        network = cast(MagNet, self.setup.network)
        highest = values.sort(dim=0, descending=True).values
        found = [highest[int(drop * len(values)), number] for number, drop in enumerate(network.drops)]
        network.thresholds.copy_(torch.stack(found))


def build(**params: Any) -> MagNet:
    """MagNet with random weights, whose detectors detect nothing; ``params`` are :class:`MagNetConfig`'s fields."""
    return MagNet(MagNetConfig(**params))


def params_for(image_shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    """The channels of (H, W, C) images; of colour ones also its authors' settings for CIFAR-10."""
    if image_shape[2] == 1:
        return {"channels": 1}
    return {"channels": 3, "pooled": False, "noise": 0.025, "drop": 0.005, "temperatures": (10.0, 40.0)}


objective = MagNetObjective
