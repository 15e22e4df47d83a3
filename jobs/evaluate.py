"""Evaluate attack x purifier x classifier: ``raypurify evaluate``; if nothing else is said, A-net on MNIST."""

from pathlib import Path

from raypurify.command import jobs

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"

if __name__ == "__main__":
    jobs.evaluate(
        data="mnist",
        classifiers=(str(WEIGHTS / "mnist/a_net"),),
        purifiers=(str(WEIGHTS / "mnist/cru_net-a_net"), *jobs.TRIVIAL_PURIFIERS),
    ).run()
