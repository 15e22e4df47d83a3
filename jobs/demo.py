"""The whole path on embedded data, in minutes: train a classifier and a purifier, attack, restore, report."""

from dataclasses import dataclass, replace

from raypurify import storage
from raypurify.cli import run
from raypurify.distributed.evaluate import EvaluationArguments, EvaluationResources
from raypurify.distributed.evaluate import main as evaluate
from raypurify.distributed.train import TrainingResources, train
from raypurify.evaluation import EvaluationConfig
from raypurify.runs import Destination
from raypurify.training import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class DemoArguments:
    """Flags of the demo."""

    output: str = "runs/demo"
    """Folder for the three runs: a path, or a URL."""
    data: str = "digits"
    """digits (embedded, no download), or another dataset of grey images."""
    epochs: int = 24
    """Of each training."""
    overwrite: bool = False
    """Start afresh, whatever the output holds."""


def main(arguments: DemoArguments) -> None:
    """Train A-net and its CRU-Net on small real digits, then evaluate: no attack, FGSM, R-FGSM and PGD."""
    classifier = storage.join(arguments.output, "a_net")
    purifier = storage.join(arguments.output, "cru_net")
    common = TrainingConfig(
        data=arguments.data,
        model="a_net",
        augmentation="affine",
        epochs=arguments.epochs,
        batch=64,
        rate=2e-3,
        validation=0,
    )
    resources = TrainingResources()
    print("1/3 training A-net")
    train(common, resources, classifier, overwrite=arguments.overwrite)
    print("2/3 training CRU-Net against attacks on A-net")
    attacked = replace(
        common,
        model="cru_net",
        classifier=storage.join(classifier, "model"),
        attacks=("fgsm,epsilon=0.3", "r_fgsm,epsilon=0.3", "pgd,epsilon=0.3,steps=5"),
        augmentation="none",
        rate=1e-3,
    )
    train(attacked, resources, purifier, overwrite=arguments.overwrite)
    print("3/3 evaluating")
    evaluate(
        EvaluationArguments(
            evaluation=EvaluationConfig(
                data=arguments.data,
                classifiers=(storage.join(classifier, "model"),),
                purifiers=(storage.join(purifier, "model"), "identity", "threshold", "median_filter"),
                settings=("white-box", "adaptive"),
                adaptive_attacks=("pgd,epsilon=0.3,steps=40",),
                adaptive_purifiers=(storage.join(purifier, "model"),),
            ),
            resources=EvaluationResources(),
            destination=Destination(output=storage.join(arguments.output, "evaluation"), overwrite=arguments.overwrite),
        )
    )


if __name__ == "__main__":
    run(main, DemoArguments())
