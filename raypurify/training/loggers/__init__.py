"""Where a training is logged as it goes, beside what the run writes: one file a logger.

A plugin file names ``build``, a callable whose parameters are the logger's and that returns a :class:`Logger`. It is
called in the process that the command was given in: workers need nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any, Protocol, runtime_checkable

from raypurify import plugins


@runtime_checkable
class Logger(Protocol):
    """Is told of a training.

    A logger may also have a method ``failed(error)``, which is called before ``finish`` where the attempt fails or is
    interrupted.
    """

    def start(self, output: str, identity: Mapping[str, Any]) -> None:
        """Before the work.

        Args:
            output: URL of the run's folder.
            identity: what is trained, on what and how, as in ``run.json``.
        """
        ...

    def epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        """After an epoch.

        Args:
            number: from 1. An attempt that goes on begins where the one before was cut off; a number may come again.
            metrics: ``loss`` (mean), ``images_per_second`` (median), and the scores of the held-out images.
        """
        ...

    def finish(self) -> None:
        """At the end of the attempt, also of one that fails."""
        ...


def build_logger(text: str) -> Logger:
    """A logger from ``NAME[,KEY=VALUE...]``, or ``my_package.module:callable[,KEY=VALUE...]``.

    Raises:
        ValueError: an unknown name or parameter, or what is built is no logger.
        ImportError: its library is not installed.
    """
    spec = plugins.Spec.parse(text)
    try:
        logger = plugins.build(__name__, spec)
    except ModuleNotFoundError as error:
        extras = metadata.metadata("raypurify").get_all("Provides-Extra") or []
        package = f"'raypurify[{spec.name}]'" if spec.name in extras else error.name
        raise ImportError(f"logger: {text} needs the package {error.name}: pip install {package}") from error
    if not isinstance(logger, Logger):
        raise ValueError(f"logger: {text} builds {type(logger).__name__}, which lacks start, epoch or finish")
    return logger
