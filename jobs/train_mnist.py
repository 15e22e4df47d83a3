"""Train CRU-Net, or a classifier, on MNIST."""

from pathlib import Path

from raypurify.distributed.train import TrainingArguments, main
from raypurify.runs import Destination
from raypurify.runs.cli import run
from raypurify.training import TrainingConfig

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"

if __name__ == "__main__":
    run(
        main,
        TrainingArguments(
            training=TrainingConfig(data="mnist", model="cru_net", classifier=str(WEIGHTS / "mnist/a_net")),
            destination=Destination(output="runs/train-mnist"),
        ),
    )
