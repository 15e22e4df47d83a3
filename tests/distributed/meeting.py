"""A purifier that two actors have to share."""

import os
import time
from pathlib import Path

from torch import Tensor, nn

PATIENCE = 60
"""Seconds that a process waits for another."""


class Meeting(nn.Module):
    """Notes in a folder which processes call it, all but the ``driver``, and lets none go on before the file ``go`` is
    there. It gives images back as they are."""

    trivial = True

    def __init__(self, folder: str, driver: int) -> None:
        super().__init__()
        self.folder, self.driver = Path(folder), driver

    def forward(self, x: Tensor) -> Tensor:
        if os.getpid() != self.driver:
            Path(self.folder, str(os.getpid())).touch()
            end = time.monotonic() + PATIENCE
            while not Path(self.folder, "go").exists() and time.monotonic() < end:
                time.sleep(0.05)
        return x


def met(folder: Path) -> list[int]:
    """The processes that have called the purifier."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name != "go")
