"""What ``raypurify`` does with the words of its command line: the page of help, or the verb."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from raypurify import __version__
from raypurify.command import jobs


@dataclass(frozen=True, kw_only=True)
class Verb:
    """What the page of help says of a verb."""

    does: str
    example: str
    """A command line, without ``raypurify``."""


VERBS = {
    "demo": Verb(
        does="Train, attack, restore and report, on embedded digits: minutes, no download.",
        example="demo",
    ),
    "evaluate": Verb(
        does="Evaluate attack x purifier x classifier: tables, and an HTML report.",
        example="evaluate --data digits --classifiers runs/demo/a_net/model --epsilons 0.1 0.2 0.3",
    ),
    "attack": Verb(
        does="Attack a dataset, and write the attacked images beside the clean ones.",
        example="attack --input digits --classifier runs/demo/a_net/model --attack deepfool --png",
    ),
    "certify": Verb(
        does="Certify how far, in L2, no attacker can change the answers of a classifier behind noise and a purifier.",
        example="certify --data digits --classifiers runs/demo/a_net/model --sigmas 0.25 --draws 1000 --limit 50",
    ),
    "clean": Verb(
        does="Clean images of any size and number, on disk or in a bucket.",
        example="clean --input 'photos/*.png' --purifier median_filter --output runs/clean",
    ),
    "train digits": Verb(
        does="Train a purifier for a classifier, or a classifier (--classifier None); grey digits, radius 0.3.",
        example="train digits --data mnist --model a_net --classifier None --output runs/a_net",
    ),
    "train photographs": Verb(
        does="The same with the defaults for photographs: radius 8/255, images mirrored and shifted.",
        example="train photographs --data cifar10 --classifier runs/d_net/model --output runs/cru_net",
    ),
    "paper": Verb(
        does="Reproduce the paper's tables: attack, train, evaluate, and compare with its figures.",
        example="paper --datasets mnist --attacked-images 2000 --limit 1000",
    ),
    "defenses": Verb(
        does="Compare defenses of other papers: train each, attack it, and say what it keeps and costs.",
        example="defenses --classifiers model_a --defenses at magnet ddsa --images 6000",
    ),
    "status": Verb(
        does="Say what a run is and how far, from its files alone: also of one that another host works on.",
        example="status runs/evaluate",
    ),
    "plugins": Verb(
        does="List attacks, purifiers, classifiers and what else has a name, or tell all of one.",
        example="plugins pgd",
    ),
}

HEAD = """\
usage: raypurify VERB [FLAGS]

Adversarial images fool classifiers. A purifier is a network that maps an attacked image back to a clean one. raypurify
trains purifiers, attacks them, measures what they are worth, and cleans images with them, on this machine or on the Ray
cluster that it is started on.
"""
FOOT = """\
raypurify VERB --help shows a verb's flags; --config FILE.yaml sets them from a file. What only you know has no default:
data, weights, where cleaned images go.
raypurify --tyro-print-completion bash (or zsh) prints a script that completes verbs and flags. raypurify --version.

Exit codes: 0 done; 1 the work failed; 2 the input was refused; 130, 143 interrupted: give the same command to go on.
"""


def main() -> None:
    """Do what the command line says; :func:`raypurify.runs.cli.run` has the exit codes."""
    words = sys.argv[1:]
    if words[:1] == ["--version"]:
        print(__version__)
    elif words in (["-h"], ["--help"], ["help"]):
        _print_page(VERBS)
    elif words[:1] in (["--tyro-print-completion"], ["--tyro-write-completion"]):
        importlib.import_module(f"{__package__}.completion").write(VERBS, words)
    else:
        name, flags = verb_of(words)
        jobs.of(name).run(flags, prog=f"raypurify {name}")


def verb_of(words: Sequence[str]) -> tuple[str, list[str]]:
    """The verb that the words begin with, and the words after it.

    Raises:
        SystemExit: there is none, which the message says; or the words ask for help on verbs of two words.
    """
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in VERBS:
            return name, [*words[count:]]
    if not words:
        print(_page(VERBS), file=sys.stderr)
        sys.exit(2)
    longer = [name for name in VERBS if name.startswith(f"{words[0]} ")]
    if longer and {"-h", "--help"} & {*words}:
        _print_page(longer)
        sys.exit(0)
    if longer:
        reason = f"{words[0]}: say what the images are: raypurify {' or raypurify '.join(longer)}"
    else:
        near = difflib.get_close_matches(words[0], [name.split()[0] for name in VERBS], n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        reason = f"there is no verb {words[0]!r}{guess or '.'} Verbs: {', '.join(VERBS)}. See raypurify --help"
    print(f"error: {reason}", file=sys.stderr)
    sys.exit(2)


def _print_page(names: Iterable[str]) -> None:
    with suppress(BrokenPipeError):  # a reader such as head has seen enough
        print(_page(names), flush=True)


def _page(names: Iterable[str]) -> str:
    """The page of help, with these verbs."""
    told = (f"  {name}\n      {VERBS[name].does}\n      $ raypurify {VERBS[name].example}\n" for name in names)
    return "\n".join([HEAD, *told, FOOT.rstrip()])
