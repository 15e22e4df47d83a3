"""CRU-Net, the clipped residual U-Net (the paper's Section 4 and Eqs. 7-11)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class CRUNetConfig:
    """The paper fixes the levels for 28x28 images and the kind of blocks; it gives no width."""

    channels: int = 1
    """How many channels the images have: 1 or 3."""
    width: int = 16
    """Feature maps of the first level; each level below doubles them."""
    levels: int = 3
    """Resolutions: 28, 14 and 7 for MNIST."""
    blocks: int = 2
    """De-noising blocks a level on each way; the paper says three, then two."""
    negative_slope: float = 0.3
    """Slope of LeakyReLU below 0: the default of Keras, which the paper used."""

    def __post_init__(self) -> None:
        for name in ("channels", "levels", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)!r}")
        if self.width < 2 or self.width % 2:
            raise ValueError(f"width must be even and at least 2, since a block halves it; got {self.width!r}")


class DenoisingBlock(nn.Module):
    """3x3 to half the maps, two 3x3, and a 3x3 that joins the first and the last.

    Read so from "a 3x3 convolution block combines all the feature maps of the first and last blocks": the outputs of
    the first convolution and of the last are concatenated, which gives the level's number of maps again.
    """

    def __init__(self, width: int, negative_slope: float) -> None:
        super().__init__()
        half = width // 2
        self.reduce = nn.Conv2d(width, half, 3, padding=1)
        self.conv1 = nn.Conv2d(half, half, 3, padding=1)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1)
        self.join = nn.Conv2d(width, width, 3, padding=1)
        self.activation = nn.LeakyReLU(negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        first = self.activation(self.reduce(x))
        last = self.activation(self.conv2(self.activation(self.conv1(first))))
        return self.activation(self.join(torch.cat([first, last], dim=1)))


class CRUNet(nn.Module):
    """I'' = Clip(F(I') + I', 0, 1), Eq. 11.

    F is a U-Net: a 3x3 convolution to ``width`` maps; on the way down ``blocks`` de-noising blocks a level and a
    stride-2 convolution that doubles the maps; the bottleneck level with blocks of its own; on the way up a transposed
    convolution, the concatenation with the same level, a smoothing 3x3 convolution and ``blocks`` blocks; then a 3x3
    convolution to the image's channels, without an activation, so that a residual can have either sign.

    Weights start as He et al. (2015) draw them, for LeakyReLU's slope, biases at zero: each convolution passes on what
    it is given in the same size. PyTorch's own start shrinks it to almost nothing, and there are no normalisation
    layers that would make up for it. The last convolution starts at zero, so that the network starts as the identity.
    """

    differentiable = True

    def __init__(self, config: CRUNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * 2**level for level in range(config.levels)]
        activation = nn.LeakyReLU(config.negative_slope)

        def level(width: int) -> nn.Sequential:
            return nn.Sequential(*(DenoisingBlock(width, config.negative_slope) for _ in range(config.blocks)))

        def conv(width_in: int, width_out: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(width_in, width_out, 3, stride=stride, padding=1), activation)

        steps = list(itertools.pairwise(widths))
        self.stem = conv(config.channels, widths[0])
        self.encoder = nn.ModuleList(level(width) for width in widths[:-1])
        self.down = nn.ModuleList(conv(narrow, wide, stride=2) for narrow, wide in steps)
        self.bottleneck = level(widths[-1])
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(wide, narrow, 2, stride=2), activation) for narrow, wide in reversed(steps)
        )
        self.smooth = nn.ModuleList(conv(2 * narrow, narrow) for narrow, _ in reversed(steps))
        self.decoder = nn.ModuleList(level(narrow) for narrow, _ in reversed(steps))
        self.output = nn.Conv2d(widths[0], config.channels, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, a=config.negative_slope)
                nn.init.zeros_(cast(nn.Parameter, module.bias))
        nn.init.zeros_(self.output.weight)

    @property
    def multiple(self) -> int:
        """How many pixels of the image, each way, one pixel of the lowest level stands for."""
        return int(2 ** (self.config.levels - 1))

    @property
    def reach(self) -> int:
        """Pixels: the radius of the receptive field. Each 3x3 convolution adds a pixel of its level."""
        blocks = 4 * self.config.blocks
        level = 2 * blocks + 2  # blocks and a step down, a smoothing and blocks up
        ways = sum(level * 2**depth for depth in range(self.config.levels - 1))
        return 2 + ways + blocks * self.multiple + (self.multiple - 1)  # the last: places inside a pixel of the lowest

    def residual(self, x: Tensor) -> Tensor:
        """F(I'; theta): (N, C, H, W) -> (N, C, H, W) of either sign. Any H and W: edges are repeated, then cropped."""
        height, width = x.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        h = self.stem(F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x)
        skips = []
        for blocks, down in zip(self.encoder, self.down, strict=True):
            h = blocks(h)
            skips.append(h)
            h = down(h)
        h = self.bottleneck(h)
        for up, smooth, blocks in zip(self.up, self.smooth, self.decoder, strict=True):
            h = blocks(smooth(torch.cat([skips.pop(), up(h)], dim=1)))
        return self.output(h)[..., :height, :width]

    def unclipped(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the restored images before the clip; the sum is taken in the images' dtype."""
        return x + self.residual(x).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same shape, range and dtype."""
        return self.unclipped(x).clamp(0, 1)

    def training_loss(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Mean squared error of the unclipped output (Eqs. 9-10).

        The paper's Eq. 10 prints I' for the restored image. The clip is left out: outside [0, 1] it has no gradient.
        """
        return self.restored_and_loss(x_adv, x)[1]

    def restored_and_loss(self, x_adv: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The restored images, as :meth:`forward` gives them, and :meth:`training_loss`, by one pass."""
        unclipped = self.unclipped(x_adv)
        return unclipped.clamp(0, 1), F.mse_loss(unclipped, x)


def build(**params: Any) -> CRUNet:
    """CRU-Net that is the identity; ``params`` are :class:`CRUNetConfig`'s fields."""
    return CRUNet(CRUNetConfig(**params))


def params_for(image_shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    """The channels of (H, W, C) images; their size and their classes do not matter."""
    return {"channels": image_shape[2]}
