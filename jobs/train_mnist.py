"""Train CRU-Net, or a classifier, on MNIST."""

from raypurify.cli import run
from raypurify.distributed.train import TrainingArguments, main
from raypurify.runs import Destination
from raypurify.training import TrainingConfig

if __name__ == "__main__":
    run(
        main,
        TrainingArguments(
            training=TrainingConfig(data="mnist", model="cru_net", classifier="weights/mnist/a_net"),
            destination=Destination(output="runs/train-mnist"),
        ),
    )
