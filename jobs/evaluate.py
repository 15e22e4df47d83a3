"""Evaluate attack x purifier x classifier."""

from raypurify.cli import run
from raypurify.distributed.evaluate import EvaluationArguments, main
from raypurify.evaluation import EvaluationConfig
from raypurify.runs import Destination

if __name__ == "__main__":
    run(
        main,
        EvaluationArguments(
            evaluation=EvaluationConfig(
                data="mnist",
                classifiers=("weights/mnist/a_net",),
                purifiers=("weights/mnist/cru_net-a_net", "identity", "rounding", "threshold", "median_filter", "jpeg"),
            ),
            destination=Destination(output="runs/evaluate"),
        ),
    )
