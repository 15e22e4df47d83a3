"""Reproduce the paper's Tables 2-7, from data to page: ``raypurify paper``; the classifiers are this project's."""

from pathlib import Path

from raypurify.command import jobs

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"

if __name__ == "__main__":
    jobs.paper(weights=str(WEIGHTS)).run()
