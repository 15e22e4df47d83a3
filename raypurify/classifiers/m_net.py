"""M-net, a MobileNet (Howard et al. 2017) sized for 32x32 images: the paper's classifier for CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from raypurify.classifiers import PIXELS, Normalize, check_channels
from raypurify.classifiers import params_for as params_for


@dataclass(frozen=True, kw_only=True)
class MNetConfig:
    """Depthwise separable convolutions after one full convolution."""

    channels: int = 3
    classes: int = 10
    stem: int = 32
    """Maps of the first convolution."""
    layers: tuple[tuple[int, int], ...] = (
        (64, 2),
        (128, 1),
        (128, 1),
        (256, 2),
        (256, 1),
        (256, 1),
        (512, 2),
        (512, 1),
    )
    """(maps, stride) of each separable convolution."""
    mean: tuple[float, ...] = PIXELS[3][0]
    """Mean of the pixels of each channel, in [0, 1]."""
    std: tuple[float, ...] = PIXELS[3][1]

    def __post_init__(self) -> None:
        check_channels(self.channels, self.mean, self.std)
        if not self.layers or any(maps < 1 or stride not in (1, 2) for maps, stride in self.layers):
            raise ValueError(f"layers must be (maps, stride) with maps >= 1 and stride 1 or 2; got {self.layers!r}")


def separable(width_in: int, width_out: int, stride: int) -> nn.Sequential:
    """A 3x3 convolution of each map, then a 1x1 convolution across maps, each normalised."""
    return nn.Sequential(
        nn.Conv2d(width_in, width_in, 3, stride=stride, padding=1, groups=width_in, bias=False),
        nn.BatchNorm2d(width_in),
        nn.ReLU(),
        nn.Conv2d(width_in, width_out, 1, bias=False),
        nn.BatchNorm2d(width_out),
        nn.ReLU(),
    )


class MNet(nn.Module):
    """A stem at the image's size, separable convolutions, the mean over the image, one linear layer."""

    def __init__(self, config: MNetConfig) -> None:
        super().__init__()
        self.normalize = Normalize(config.mean, config.std)
        width = config.stem
        stages: list[nn.Module] = [
            nn.Conv2d(config.channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        for maps, stride in config.layers:
            stages.append(separable(width, maps, stride))
            width = maps
        self.features = nn.Sequential(*stages)
        self.head = nn.Linear(width, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float32 in [0, 1] -> (N, classes) logits."""
        return self.head(self.features(self.normalize(x)).mean(dim=(2, 3)))


def build(**params: Any) -> MNet:
    """M-net with random weights; ``params`` are :class:`MNetConfig`'s fields."""
    return MNet(MNetConfig(**params))
