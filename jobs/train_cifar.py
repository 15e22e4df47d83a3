"""Train CRU-Net, or a classifier, on CIFAR-10: ``raypurify train photographs``; if nothing else is said, for D-net."""

from pathlib import Path

from raypurify.command import jobs

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"

if __name__ == "__main__":
    d_net = str(WEIGHTS / "cifar10/d_net")
    jobs.train("photographs", data="cifar10", classifier=d_net, output="runs/train-cifar").run()
