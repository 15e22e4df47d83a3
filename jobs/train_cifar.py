"""Train CRU-Net, or a classifier, on CIFAR-10."""

from raypurify.cli import run
from raypurify.distributed.train import TrainingArguments, main
from raypurify.runs import Destination
from raypurify.training import TrainingConfig

EPSILON = 8 / 255

if __name__ == "__main__":
    run(
        main,
        TrainingArguments(
            training=TrainingConfig(
                data="cifar10",
                model="cru_net",
                classifier="runs/d_net/model",
                attacks=(
                    f"fgsm,epsilon={EPSILON:.6f}",
                    f"r_fgsm,epsilon={EPSILON:.6f}",
                    f"pgd,epsilon={EPSILON:.6f},steps=5",
                    f"pgd,epsilon={EPSILON:.6f},steps=10",
                ),
                augmentation="flip_crop",
            ),
            destination=Destination(output="runs/train-cifar"),
        ),
    )
