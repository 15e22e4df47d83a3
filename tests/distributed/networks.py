"""Networks that the training tests name by a dotted path."""

import torch
from torch import Tensor, nn

from raypurify.classifiers import d_net


class Mixing(nn.Module):
    """A small D-net for grey images, with dropout of maps and of features before its last layer: all that mixes or
    draws over a batch."""

    def __init__(self) -> None:
        super().__init__()
        network = d_net.build(channels=1, growth=4, layers=(2, 2), mean=(0.2,), std=(0.3,))
        self.features = nn.Sequential(network.normalize, network.features, nn.Dropout2d(0.2))
        self.head = nn.Sequential(nn.Dropout(0.5), network.head)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean(dim=(2, 3)))


class Diverging(nn.Module):
    """A linear classifier of digits whose logits are infinite after ``steps`` training steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.linear = nn.Linear(784, 10)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return self.linear(x.flatten(1)) * (torch.inf if self.seen > self.steps else 1)


class Broken(nn.Module):
    """A linear classifier of digits that is broken in training."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("no such thing")
        return self.linear(x.flatten(1))


class Coarse(nn.Sequential):
    """A classifier of colour images of any size, into two classes, that takes little memory itself."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
