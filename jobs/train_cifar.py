"""Train CRU-Net, or a classifier, on CIFAR-10."""

from pathlib import Path

from raypurify.distributed.train import TrainingArguments, main
from raypurify.runs import Destination
from raypurify.runs.cli import run
from raypurify.training import PHOTOGRAPH_ATTACKS, TrainingConfig

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"

if __name__ == "__main__":
    run(
        main,
        TrainingArguments(
            training=TrainingConfig(
                data="cifar10",
                model="cru_net",
                classifier=str(WEIGHTS / "cifar10/d_net"),
                attacks=PHOTOGRAPH_ATTACKS,
                augmentation="flip_crop",
            ),
            destination=Destination(output="runs/train-cifar"),
        ),
    )
