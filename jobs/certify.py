"""Certify a smoothed classifier behind a purifier: ``raypurify certify``; if nothing else is said, MNIST on A-net."""

from pathlib import Path

from raypurify.command import jobs

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"

if __name__ == "__main__":
    jobs.certify(data="mnist", classifiers=(str(WEIGHTS / "mnist/a_net"),)).run()
