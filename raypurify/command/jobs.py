"""The verbs, each with its defaults.

The scripts in ``jobs/`` run the same ones, and give more defaults by the flags' names. A flag without a default is
required.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Images = Literal["digits", "photographs"]

TRIVIAL_PURIFIERS = ("identity", "rounding", "threshold", "median_filter", "jpeg")
"""What a learned purifier has to beat: evaluated where no purifier is named."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a command line starts."""

    main: Callable[[Any], Any]
    default: Any
    """Its arguments, a dataclass: a field that the command line has to give is ``tyro.MISSING``."""

    def run(self, argv: Sequence[str] | None = None, *, prog: str | None = None) -> None:
        """Parse the words of a command line, by default this process's own, and do the work.

        See :func:`raypurify.runs.cli.run`, also for the exit codes.
        """
        from raypurify.runs import cli

        cli.run(self.main, self.default, argv, prog=prog)

    @classmethod
    def of(cls, main: Callable[[Any], Any], kind: type, **defaults: Any) -> Job:
        """A job whose arguments are of a ``kind``, with defaults by the flags' names."""
        from raypurify.runs import cli

        return cls(main=main, default=cli.blank(kind, defaults))


def evaluate(**defaults: Any) -> Job:
    """Evaluate attack x purifier x classifier."""
    from raypurify.jobs.evaluate import EvaluationArguments, main

    usual = {"purifiers": TRIVIAL_PURIFIERS, "output": "runs/evaluate"}
    return Job.of(main, EvaluationArguments, **{**usual, **defaults})


def attack(**defaults: Any) -> Job:
    """Attack a dataset and write the attacked images."""
    from raypurify.jobs.attack import AttackArguments, main

    usual = {"attack": "pgd,epsilon=0.3,steps=40", "output": "runs/attack"}
    return Job.of(main, AttackArguments, **{**usual, **defaults})


def certify(**defaults: Any) -> Job:
    """Certify how far, in L2, no attacker can change answers."""
    from raypurify.jobs.certify import CertificationArguments, main

    return Job.of(main, CertificationArguments, **{"output": "runs/certify", **defaults})


def clean() -> Job:
    """Clean images of any size and number."""
    from raypurify.jobs.clean import CleaningArguments, main

    return Job.of(main, CleaningArguments)


def train(images: Images, **defaults: Any) -> Job:
    """Train a purifier for a classifier, or a classifier.

    The classifier has to be named, or be said to be none. ``images`` picks the defaults.
    """
    import tyro

    from raypurify.jobs.train import PRESETS, TrainingArguments, main

    usual = {"model": "cru_net", "classifier": tyro.MISSING, "output": f"runs/train-{images}"}
    return Job.of(main, TrainingArguments, **{**usual, **PRESETS[images], **defaults})


def status() -> Job:
    """Say what a run is, and how far."""
    from raypurify.command.status import StatusArguments, main

    return Job.of(main, StatusArguments)


def plugins() -> Job:
    """List what has a name, or tell all of one."""
    from raypurify.command.catalogue import PluginsArguments, main

    return Job.of(main, PluginsArguments)


def paper(**defaults: Any) -> Job:
    """Reproduce the paper's tables."""
    from raypurify.jobs.reproduce_paper import PaperArguments, main

    return Job.of(main, PaperArguments, **defaults)


def defenses(**defaults: Any) -> Job:
    """Compare defenses on one bench."""
    from raypurify.jobs.compare_defenses import DefensesArguments, main

    return Job.of(main, DefensesArguments, **defaults)


def demo() -> Job:
    """Train, attack, restore and report, on embedded digits."""
    from raypurify.jobs.demo import DemoArguments, main

    return Job.of(main, DemoArguments)
