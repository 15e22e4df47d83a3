"""Attack a dataset and write the attacked images: ``raypurify attack``; if nothing else is said, MNIST on A-net."""

from pathlib import Path

from raypurify.command import jobs

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"

if __name__ == "__main__":
    jobs.attack(input="mnist", classifier=str(WEIGHTS / "mnist/a_net")).run()
