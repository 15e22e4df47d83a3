"""The verbs, each with its defaults.

The scripts in ``jobs/`` run the same ones, and give more defaults by the flags' names. A flag without a default is
required.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

Images = Literal["digits", "photographs"]

TRIVIAL_PURIFIERS = ("identity", "rounding", "threshold", "median_filter", "jpeg")
"""What a learned purifier has to beat: evaluated where no purifier is named."""


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """What a line that is typed starts."""

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
    def of(cls, main: Callable[[Any], Any], kind: type, **defaults: Any) -> CommandLine:
        """One whose arguments are of a ``kind``, with defaults by the flags' names."""
        from raypurify.runs import cli

        return cls(main=main, default=cli.blank(kind, defaults))


STARTED: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "evaluate": (
        "raypurify.jobs.evaluate",
        "EvaluationArguments",
        {"purifiers": TRIVIAL_PURIFIERS, "output": "runs/evaluate"},
    ),
    "attack": (
        "raypurify.jobs.attack",
        "AttackArguments",
        {"attack": "pgd,epsilon=0.3,steps=40", "output": "runs/attack"},
    ),
    "certify": ("raypurify.jobs.certify", "CertificationArguments", {"output": "runs/certify"}),
    "clean": ("raypurify.jobs.clean", "CleaningArguments", {}),
    "status": ("raypurify.command.status", "StatusArguments", {}),
    "plugins": ("raypurify.command.catalogue", "PluginsArguments", {}),
    "paper": ("raypurify.jobs.reproduce_paper", "PaperArguments", {}),
    "defenses": ("raypurify.jobs.compare_defenses", "DefensesArguments", {}),
    "demo": ("raypurify.jobs.demo", "DemoArguments", {}),
}
"""By verb: the module whose ``main`` does the work, the class of its arguments, and defaults by the flags' names."""


def of(verb: str, **defaults: Any) -> CommandLine:
    """What a verb starts, with defaults by the flags' names. Its module is imported now."""
    first, _, images = verb.partition(" ")
    if first == "train":
        return train(cast("Images", images), **defaults)
    place, kind, usual = STARTED[verb]
    module = importlib.import_module(place)
    return CommandLine.of(module.main, getattr(module, kind), **{**usual, **defaults})


def train(images: Images, **defaults: Any) -> CommandLine:
    """Train a purifier for a classifier, or a classifier.

    The classifier has to be named, or be said to be none. ``images`` picks the defaults.
    """
    import tyro

    from raypurify.jobs.train import PRESETS, TrainingArguments, main

    usual = {"model": "cru_net", "classifier": tyro.MISSING, "output": f"runs/train-{images}"}
    return CommandLine.of(main, TrainingArguments, **{**usual, **PRESETS[images], **defaults})


evaluate = partial(of, "evaluate")
attack = partial(of, "attack")
certify = partial(of, "certify")
clean = partial(of, "clean")
status = partial(of, "status")
plugins = partial(of, "plugins")
paper = partial(of, "paper")
defenses = partial(of, "defenses")
demo = partial(of, "demo")
