"""The exponential moving average of a network's weights, which is often better than the last of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """A moving average of a network's floating-point state; of other numbers, such as counts, the last.

    After n steps the decay is at most (1 + n) / (10 + n), so that the first weights are soon forgotten (as TensorFlow's
    ``ExponentialMovingAverage`` does).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """The average of ``network``, on its device, by a ``decay`` a step."""
        self.network, self.decay = network, decay
        self.state = _copied(network.state_dict())

    def update(self, steps: int) -> None:
        """Take in the network as it is after so many steps of the training."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                if value.is_floating_point():
                    self.state[name].lerp_(value, 1 - decay)
                else:
                    self.state[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the network have the average for its state while the block runs."""
        own = _copied(self.network.state_dict())
        self.network.load_state_dict(self.state)
        try:
            yield
        finally:
            self.network.load_state_dict(own)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from an average that was kept."""
        for name, value in state.items():
            self.state[name].copy_(value)


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
