"""TensorBoard's files: ``tensorboard --logdir OUTPUT/tensorboard``."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raypurify import storage


@dataclass(kw_only=True)
class TensorBoard:
    """Writes a scalar for each metric, and the run's identity as text. Needs tensorboardX, which Ray Train brings."""

    folder: str | None = None
    """A local path; by default ``tensorboard`` in a local output."""
    _writer: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        importlib.import_module("tensorboardX")  # where it is missing that is said before the work

    def start(self, output: str, identity: Mapping[str, Any]) -> None:
        """See :class:`raypurify.training.loggers.Logger`."""
        if self.folder is None and not storage.is_local(output):
            raise ValueError(f"logger: TensorBoard's files are written on this machine, not to {output}; give a folder")
        library = importlib.import_module("tensorboardX")
        self._writer = library.SummaryWriter(self.folder or storage.join(output, "tensorboard"))
        self._writer.add_text("identity", f"```\n{json.dumps(identity, indent=2)}\n```")

    def epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        """See :class:`raypurify.training.loggers.Logger`."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()

    def finish(self) -> None:
        """See :class:`raypurify.training.loggers.Logger`."""
        self._writer.close()


build = TensorBoard
