"""Evaluate attack x purifier x classifier."""

from pathlib import Path

from raypurify.distributed.evaluate import EvaluationArguments, main
from raypurify.evaluation.grid import EvaluationConfig
from raypurify.runs import Destination
from raypurify.runs.cli import run

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"

if __name__ == "__main__":
    run(
        main,
        EvaluationArguments(
            evaluation=EvaluationConfig(
                data="mnist",
                classifiers=(str(WEIGHTS / "mnist/a_net"),),
                purifiers=(
                    str(WEIGHTS / "mnist/cru_net-a_net"),
                    "identity",
                    "rounding",
                    "threshold",
                    "median_filter",
                    "jpeg",
                ),
            ),
            destination=Destination(output="runs/evaluate"),
        ),
    )
