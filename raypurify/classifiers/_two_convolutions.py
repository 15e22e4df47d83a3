"""What models A and C of Defense-GAN's bench share."""

from __future__ import annotations

from torch import Tensor, nn

from raypurify.classifiers import ImageConfig, Normalize


class TwoConvolutions(nn.Module):
    """A convolution, one of 64 maps, 5x5 and stride 2, without padding, then a hidden layer of 128."""

    def __init__(self, config: ImageConfig, maps: int, kernel: int) -> None:
        """``maps`` of ``kernel`` x ``kernel``: the first convolution, whose padding keeps the size."""
        super().__init__()
        side = (config.image_size - 5) // 2 + 1
        if side < 1:
            raise ValueError(f"image_size must be at least 5; got {config.image_size!r}")
        self.normalize = Normalize(config.mean, config.std)
        self.layers = nn.Sequential(
            nn.Conv2d(config.channels, maps, kernel, padding=kernel // 2),
            nn.ReLU(),
            nn.Conv2d(maps, 64, 5, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(64 * side * side, 128),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(128, config.classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float32 in [0, 1] -> (N, classes) logits."""
        return self.layers(self.normalize(x))
