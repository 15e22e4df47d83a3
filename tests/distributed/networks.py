"""Networks that the training tests name by a dotted path."""

import torch
from torch import Tensor, nn


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
