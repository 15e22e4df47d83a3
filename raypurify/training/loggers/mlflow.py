"""MLflow: one of its runs for each attempt."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class MLflow:
    """Logs the run's identity as parameters, and the metrics by epoch. Needs the package mlflow, or mlflow-skinny."""

    experiment: str = "raypurify"
    uri: str | None = None
    """Of the tracking server; by default that of MLFLOW_TRACKING_URI."""

    _status: str = field(default="FINISHED", init=False)

    def __post_init__(self) -> None:
        self._mlflow = importlib.import_module("mlflow")

    def start(self, output: str, identity: Mapping[str, Any]) -> None:
        """See :class:`raypurify.training.loggers.Logger`."""
        if self.uri is not None:
            self._mlflow.set_tracking_uri(self.uri)
        self._mlflow.set_experiment(self.experiment)
        self._mlflow.start_run(run_name=output)
        self._mlflow.log_params(dict(identity))

    def epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        """See :class:`raypurify.training.loggers.Logger`."""
        self._mlflow.log_metrics(dict(metrics), step=number)

    def failed(self, error: BaseException) -> None:
        """See :class:`raypurify.training.loggers.Logger`."""
        self._status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"

    def finish(self) -> None:
        """See :class:`raypurify.training.loggers.Logger`."""
        self._mlflow.end_run(self._status)


build = MLflow
