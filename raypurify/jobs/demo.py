"""The whole path on embedded data, in minutes: train a classifier and a purifier, attack, restore, report."""

from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from raypurify import storage
from raypurify.evaluation.grid import EvaluationConfig
from raypurify.jobs.engine import engine_of
from raypurify.jobs.evaluate import evaluate
from raypurify.jobs.resources import ActorPool, TrainingResources
from raypurify.jobs.train import train
from raypurify.runs import log
from raypurify.runs.log import LogFlags
from raypurify.runs.progress import print_table
from raypurify.training.config import TrainingConfig

EPSILON = 0.2
"""Small digits, enlarged from 8x8, are blurred: MNIST's customary 0.3 leaves too little of them to show."""


@dataclass(frozen=True, kw_only=True)
class DemoArguments:
    """Flags of the demo."""

    output: str = "runs/demo"
    """Folder for the three runs: a path, or a URL."""
    data: str = "digits"
    """digits (embedded, no download), or another dataset of grey images."""
    epochs: int = 5
    """How many epochs the purifier is trained."""
    cpus_per_worker: int = 2
    """Each step takes this number of CPUs, and computes with as many threads."""
    local: bool = False
    """Work in this process, in plain torch, without Ray."""
    overwrite: bool = False
    """Start afresh, whatever the output holds."""
    log: LogFlags = field(default_factory=LogFlags)


def main(arguments: DemoArguments) -> None:
    """Train A-net and its CRU-Net on small real digits, then evaluate: no attack, FGSM, R-FGSM and PGD."""
    classifier, purifier, evaluation = (
        storage.join(arguments.output, part) for part in ("a_net", "cru_net", "evaluation")
    )
    resources = TrainingResources(cpus_per_worker=arguments.cpus_per_worker, local=arguments.local)
    common = TrainingConfig(
        data=arguments.data, model="a_net", augmentation="affine", epochs=4, batch=16, rate=2e-3, validation=0
    )
    engine_of(resources).check_room(resources.needs)
    log.tell("1/3 training A-net")
    # In this process: it takes seconds, of which Ray Train would need more to start its workers.
    train(common, replace(resources, local=True), classifier, overwrite=arguments.overwrite)
    log.tell("2/3 training CRU-Net against attacks on A-net")
    fgsm, r_fgsm, pgd = (f"{attack},epsilon={EPSILON}" for attack in ("fgsm", "r_fgsm", "pgd"))
    against = replace(
        common,
        model="cru_net",
        classifier=storage.join(classifier, "model"),
        attacks=(fgsm, f"{pgd},steps=3"),
        epochs=arguments.epochs,
        augmentation="none",
    )
    train(against, resources, purifier, overwrite=arguments.overwrite)
    log.tell("3/3 evaluating")
    config = EvaluationConfig(
        data=arguments.data,
        classifiers=(storage.join(classifier, "model"),),
        purifiers=("identity", storage.join(purifier, "model"), "threshold", "median_filter"),
        settings=("white-box", "adaptive"),
        attacks=("none", fgsm, r_fgsm, f"{pgd},steps=20"),
        adaptive_attacks=(f"{pgd},steps=5",),
        adaptive_purifiers=(storage.join(purifier, "model"),),
        masking_images=4,
    )
    pool = ActorPool(actors=1, cpus_per_actor=arguments.cpus_per_worker, local=arguments.local)
    print_table(accuracies(evaluate(config, pool, evaluation, overwrite=arguments.overwrite)))
    log.tell(f"report: {storage.join(storage.absolute(evaluation), 'report.html')}")


def accuracies(summary: pa.Table) -> pa.Table:
    """The shares of the images that are right behind each purifier: a row for each, a column for each attack.

    Args:
        summary: of an evaluation, ``schema.SUMMARY``; an attacker who knows the purifier has a column of his own.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in summary.to_pylist():
        attack = {"white-box": "", "adaptive": "adaptive "}[row["setting"]] + row["attack"]
        purifier = {"identity": "none"}.get(row["purifier"], row["purifier"])
        found.setdefault(purifier, {"purifier": purifier})[attack] = row["accuracy_purified"]
    columns = list(dict.fromkeys(name for row in found.values() for name in row))
    return pa.table({name: [row.get(name) for row in found.values()] for name in columns})
