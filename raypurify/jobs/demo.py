"""The whole path on embedded data, in minutes: train a classifier and a purifier, attack, restore, report."""

from dataclasses import dataclass, replace

from raypurify import storage
from raypurify.evaluation.grid import EvaluationConfig
from raypurify.jobs.evaluate import EvaluationArguments
from raypurify.jobs.evaluate import main as evaluate
from raypurify.jobs.resources import ActorPool, TrainingResources
from raypurify.jobs.train import train
from raypurify.runs import Destination
from raypurify.training import TrainingConfig

EPSILON = 0.2
"""Small digits, enlarged from 8x8, are blurred: MNIST's customary 0.3 leaves too little of them to show."""


@dataclass(frozen=True, kw_only=True)
class DemoArguments:
    """Flags of the demo."""

    output: str = "runs/demo"
    """Folder for the three runs: a path, or a URL."""
    data: str = "digits"
    """digits (embedded, no download), or another dataset of grey images."""
    epochs: int = 16
    """Of the purifier's training; the classifier's has half as many."""
    cpus_per_worker: int = 2
    """CPUs, and threads of arithmetic, of each step."""
    local: bool = False
    """Work in this process, in plain torch, without Ray."""
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
        epochs=max(1, arguments.epochs // 2),
        batch=32,
        rate=2e-3,
        validation=0,
    )
    resources = TrainingResources(cpus_per_worker=arguments.cpus_per_worker, local=arguments.local)
    print("1/3 training A-net")
    train(common, resources, classifier, overwrite=arguments.overwrite)
    print("2/3 training CRU-Net against attacks on A-net")
    fgsm, r_fgsm, pgd = (f"{attack},epsilon={EPSILON}" for attack in ("fgsm", "r_fgsm", "pgd"))
    attacked = replace(
        common,
        model="cru_net",
        classifier=storage.join(classifier, "model"),
        attacks=(fgsm, fgsm, r_fgsm, f"{pgd},steps=3"),
        epochs=arguments.epochs,
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
                attacks=("none", fgsm, r_fgsm, f"{pgd},steps=40"),
                adaptive_attacks=(f"{pgd},steps=20",),
                adaptive_purifiers=(storage.join(purifier, "model"),),
                masking_images=100,
            ),
            resources=ActorPool(actors=1, cpus_per_actor=arguments.cpus_per_worker, local=arguments.local),
            destination=Destination(output=storage.join(arguments.output, "evaluation"), overwrite=arguments.overwrite),
        )
    )
