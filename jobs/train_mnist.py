"""Train CRU-Net, or a classifier, on MNIST: ``raypurify train digits``; if nothing else is said, for A-net."""

from pathlib import Path

from raypurify.command import jobs

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"

if __name__ == "__main__":
    jobs.train("digits", data="mnist", classifier=str(WEIGHTS / "mnist/a_net"), output="runs/train-mnist").run()
