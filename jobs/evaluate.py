"""Evaluate attack x purifier x classifier."""

from raypurify.cli import run
from raypurify.distributed.evaluate import EvaluationArguments, main
from raypurify.evaluation import EvaluationConfig

if __name__ == "__main__":
    run(
        main,
        EvaluationArguments(
            evaluation=EvaluationConfig(
                data="mnist",
                classifiers=("weights/mnist/a_net",),
                purifiers=("weights/mnist/cru_net-a_net", "identity", "rounding", "threshold", "median_filter", "jpeg"),
            ),
            output="runs/evaluate",
        ),
    )
