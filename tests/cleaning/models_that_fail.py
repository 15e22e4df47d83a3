"""Networks of a user's that fail on some images, named in tests as ``models_that_fail:NAME``."""

import os
import signal

import torch
from torch import Tensor, nn


class Picky(nn.Module):
    """Gives images back as they came; fails on those of a height of 13, and on batches with a bright corner."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] == 13:
            raise IndexError("thirteen rows")
        if x[:, :, 0, 0].max() == 1:
            raise RuntimeError("a bright corner")
        return x


class Deadly(nn.Module):
    """Gives images back as they came; ends the process on those with a bright corner."""

    def forward(self, x: Tensor) -> Tensor:
        if x[:, :, 0, 0].max() == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        return x


class Starved(nn.Module):
    """Runs out of memory on all but the smallest images."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] > 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x


class Divides(nn.Module):
    """Divides by the corner: NaN where all pixels are black, infinity where only the corner is."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x[:, :, :1, :1]


class Judge(nn.Module):
    """A classifier that fails on images of a height of 12."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] == 12:
            raise ValueError("twelve rows")
        return torch.stack([x.mean(dim=(1, 2, 3)), 1 - x.mean(dim=(1, 2, 3))], dim=1)


class Talkative(nn.Module):
    """Gives images back as they came, and prints."""

    def forward(self, x: Tensor) -> Tensor:
        print("a word", flush=True)
        os.write(1, b"and another\n")
        return x


class Fatal(nn.Module):
    """Ends the process on every image of more than 32 rows."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] > 32:
            os.kill(os.getpid(), signal.SIGSEGV)
        return x
