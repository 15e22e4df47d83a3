"""DDSA (Bakhti et al. 2019): a deep denoising autoencoder whose code is sparse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class DDSAConfig:
    """The paper's text gives neither layers nor rho and beta: these are this project's choice."""

    channels: int = 1
    width: int = 32
    """Maps of the first layer; the code has twice as many, at half the size."""
    rho: float = 0.05
    """The mean activation, in (0, 1), that each map of the code is drawn to."""
    beta: float = 0.01
    """Weight of the divergence of the code's activations from ``rho``, beside the squared error."""

    def __post_init__(self) -> None:
        if min(self.channels, self.width) < 1:
            raise ValueError(f"channels and width must be at least 1; got {self.channels!r} and {self.width!r}")
        if not 0 < self.rho < 1 or self.beta < 0:
            raise ValueError(f"rho must be in (0, 1) and beta at least 0; got {self.rho!r} and {self.beta!r}")


class DDSA(nn.Module):
    """Two convolutions, the second of stride 2, a code with a sigmoid, and the way back.

    Its authors put it before a classifier that was retrained on PGD's images (``--train-against adaptive``, or the
    attacks of a training without ``--classifier``).
    """

    multiple = 2
    reach = 10

    def __init__(self, config: DDSAConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.encoder = nn.Sequential(
            nn.Conv2d(config.channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.Sigmoid(),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(2 * width, width, 2, stride=2),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, config.channels, 3, padding=1),
        )

    def restored_and_code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The restored images (N, C, H, W) in [0, 1], and their code (N, 2 width, H / 2, W / 2)."""
        height, width = x.shape[2:]
        padded = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate") if height % 2 or width % 2 else x
        code = self.encoder(padded)
        return torch.sigmoid(self.decoder(code).float())[..., :height, :width], code.float()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same shape and range."""
        return self.restored_and_code(x)[0]

    def training_loss(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Squared error of the restored images, and the divergence of the code's mean activations from ``rho``."""
        return self.restored_and_loss(x_adv, x)[1]

    def restored_and_loss(self, x_adv: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The restored images and :meth:`training_loss`, by one pass."""
        restored, code = self.restored_and_code(x_adv)
        active = code.mean(dim=(0, 2, 3)).clamp(1e-6, 1 - 1e-6)
        rho = self.config.rho
        divergence = rho * (rho / active).log() + (1 - rho) * ((1 - rho) / (1 - active)).log()
        return restored, F.mse_loss(restored, x) + self.config.beta * divergence.mean()


def build(**params: Any) -> DDSA:
    """DDSA with random weights; ``params`` are :class:`DDSAConfig`'s fields."""
    return DDSA(DDSAConfig(**params))


def params_for(image_shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    """The channels of (H, W, C) images; their size and their classes do not matter."""
    return {"channels": image_shape[2]}
