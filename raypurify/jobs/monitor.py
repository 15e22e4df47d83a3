"""What a person sees of a training while it goes on, whoever trains, and what a logger is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from raypurify.report import formats
from raypurify.runs import log
from raypurify.runs.progress import Progress
from raypurify.training.loggers import Logger


@dataclass(kw_only=True)
class Monitor:
    """Shows the progress within an epoch on standard error, and prints a line on each epoch. Epochs count from 1."""

    epochs: int
    """Of the training."""
    images: int
    """Of an epoch."""
    logger: Logger | None = None
    """It has been started. Where it fails the training goes on without it."""
    _shown: Progress | None = field(default=None, init=False)
    _epoch: int = field(default=0, init=False)
    """The last that was told of."""

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hide()
        failed = getattr(self.logger, "failed", None)
        if error is not None and failed is not None:
            self._log(failed, error)
        if self.logger is not None:
            self._log(self.logger.finish)

    def resumed(self, epoch: int, steps: int = 0) -> None:
        """The training goes on from a checkpoint, also where a worker was lost.

        Args:
            epoch: the last one that is done; 0 where none is.
            steps: that are done of the next one.
        """
        self._hide()
        within = f" and step {steps:,} of epoch {epoch + 1}" if steps else ""
        log.tell(f"going on from epoch {epoch}{within}", epoch=epoch, steps=steps)

    def progressed(self, epoch: int, images: int, seconds: float) -> None:
        """So many images of an epoch are trained on, in so many seconds."""
        if self._shown is None:
            what = f"epoch {epoch}/{self.epochs}"
            self._shown = Progress(what, total=self.images, unit="images", passing=True).__enter__()
        left = (self.epochs - epoch + 1) * self.images - images
        note = f"training: {formats.duration(left * seconds / images)} left"
        self._shown.advance(images - self._shown.count, note, began=time.time() - seconds)

    def trained(self, metrics: Mapping[str, float]) -> None:
        """An epoch is trained, and its held-out images are scored; one that is trained again is not told again.

        Args:
            metrics: ``epoch``, ``loss``, ``images_per_second``, and the scores.
        """
        self._hide()
        epoch, scores = int(metrics["epoch"]), dict(metrics)
        if epoch <= self._epoch:
            return
        self._epoch = epoch
        del scores["epoch"], scores["loss"], scores["images_per_second"]
        told = "".join(f", {name} {value:.4f}" for name, value in scores.items())
        speed = f"{metrics['images_per_second']:.0f} images/s"
        log.tell(
            f"epoch {epoch}/{self.epochs}: loss {metrics['loss']:.5f}, {speed}{told}",
            epoch=epoch,
            epochs=self.epochs,
            loss=metrics["loss"],
            images_per_second=metrics["images_per_second"],
            scores=scores,
        )
        if self.logger is not None:
            self._log(self.logger.epoch, epoch, {name: value for name, value in metrics.items() if name != "epoch"})

    def _hide(self) -> None:
        if self._shown is not None:
            self._shown.__exit__(None, None, None)
            self._shown = None

    def _log(self, call: Callable[..., Any], *values: Any) -> None:
        try:
            call(*values)
        except Exception as error:
            self.logger = None
            log.tell(f"warning: the logger failed, and is not called again: {error!r}", stderr=True)
