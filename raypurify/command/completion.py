"""Completion of verbs and flags in a shell: tyro writes the script, from the same arguments that the verbs parse."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import field, make_dataclass
from typing import Any

import tyro

from raypurify.command import jobs
from raypurify.runs import cli


def write(verbs: Iterable[str], words: Sequence[str]) -> None:
    """Write the script for verbs that ``words`` ask for: ``--tyro-print-completion bash``.

    Raises:
        SystemExit: once it is written.
    """
    defaults = {name: _with_config(jobs.of(name).default) for name in verbs}
    kinds = {name: default for name, default in defaults.items() if " " not in name}
    parents: dict[str, dict[str, Any]] = {}
    for name, default in defaults.items():
        first, _, second = name.partition(" ")
        if second:
            parents.setdefault(first, {})[second] = default
    for first, children in parents.items():
        # A subcommand of tyro's that has subcommands is a dataclass with a field of theirs.
        kind = make_dataclass(first, [("images", tyro.extras.subcommand_type_from_defaults(children))])
        kinds[first] = kind(tyro.MISSING)
    settings = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    every = tyro.extras.subcommand_type_from_defaults(kinds)
    script = io.StringIO()
    try:
        with redirect_stdout(script):
            tyro.cli(every, args=[*words], prog="raypurify", config=settings, registry=cli.FLAGS)
    finally:
        print(_SPEC.sub(lambda found: found[0].replace("\\n", " "), script.getvalue()), end="")


_SPEC = re.compile("^COMPLETION_SPEC = .*", re.MULTILINE)
"""Flags and what they are for, as a Python literal. A shell would take each line of a text for a flag."""


def _with_config(default: Any) -> Any:
    """Arguments with the flag ``--config``, which is taken out of a command line before tyro parses it."""
    config = ("config", str | None, field(default=None))
    kind = make_dataclass(type(default).__name__, [config], bases=(type(default),), frozen=True, kw_only=True)
    return kind(**vars(default))
