"""Attack a dataset and write the attacked images."""

from pathlib import Path

from raypurify.cli import run
from raypurify.distributed.attack import AttackArguments, main
from raypurify.generation import GenerationConfig
from raypurify.runs import Destination

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"

if __name__ == "__main__":
    run(
        main,
        AttackArguments(
            generation=GenerationConfig(
                input="mnist", attack="pgd,epsilon=0.3,steps=40", classifier=str(WEIGHTS / "mnist/a_net")
            ),
            destination=Destination(output="runs/attack"),
        ),
    )
