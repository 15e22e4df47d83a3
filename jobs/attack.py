"""Attack a dataset and write the attacked images."""

from pathlib import Path

from raypurify.distributed.attack import AttackArguments, main
from raypurify.evaluation.generation import GenerationConfig
from raypurify.runs import Destination
from raypurify.runs.cli import run

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
