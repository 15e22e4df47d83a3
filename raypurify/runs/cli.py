"""What every job's command line has: typed flags, ``--config FILE.yaml``, and errors that a person can act on."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from functools import partial
from itertools import takewhile
from types import FrameType
from typing import Any, TypeVar, get_type_hints

import tyro
import yaml

from raypurify import plugins
from raypurify.runs import failures, fields, log

Arguments = TypeVar("Arguments")


SHOWN = 8
"""Names of flags that a line lists at most."""
SENT_AGAIN = 0.1
"""Seconds after which a signal is sent anew that came where no exception gets out."""


def run(
    main: Callable[[Arguments], Any], default: Arguments, argv: Sequence[str] | None = None, *, prog: str | None = None
) -> None:
    """Parse the command line onto ``default`` and run ``main``; ``prog`` is what its usage calls the program.

    A file given as ``--config FILE.yaml`` sets flags by their names; flags on the command line win. The exit codes of
    every job:

    - 0: done.
    - 1: the work failed: an outage of the store, too many rejects, a lost lease, what a worker raised, a fault of the
      program's own.
    - 2: the input was refused.
    - 130, 143: interrupted by SIGINT (Ctrl-C), by SIGTERM (Kubernetes, Slurm, ``ray job stop``). The lease is released.

    One line says what happened: see :mod:`raypurify.runs.failures`.
    """
    words = sys.argv[1:] if argv is None else argv
    with log.written(_log_format(words), job=main.__module__.rpartition(".")[2]), _interruptible() as received:
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        try:
            arguments = parse(default, words, description=main.__doc__, prog=prog)
            log.note(output=getattr(getattr(arguments, "destination", arguments), "output", None))
            main(arguments)
        except SystemExit:
            raise
        except BaseException as error:
            if received or isinstance(error, KeyboardInterrupt):
                code = 128 + (received or [signal.SIGINT])[0]
                told = "interrupted: what is done stays done; give the same command to go on"
                log.tell(told, stderr=True, exit_code=code)
                sys.exit(code)
            code, line = failures.told(error)
            log.tell(line, stderr=True, exit_code=code)
            sys.exit(code)


def _log_format(words: Sequence[str]) -> log.Format:
    """The form of lines that a command line asks for. It is looked up before flags are parsed: what is wrong with them
    is told in it.
    """
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--log-format", "--log_format", nargs="?")
    flags.add_argument("--config", nargs="?")
    asked = flags.parse_known_args(words)[0]
    if asked.log_format is None and asked.config is not None:
        with suppress(OSError, ValueError):  # told when the file is read in earnest
            asked.log_format = _read(asked.config).get("log_format")
    return "json" if asked.log_format == "json" else "text"


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt in the main thread; gives the list of those that came."""
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = {}
    report_unraisable = sys.unraisablehook
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, interrupt)
        sys.unraisablehook = partial(_send_again, received, report_unraisable)
    try:
        yield received
    finally:
        sys.unraisablehook = report_unraisable
        for number, handler in before.items():
            # While an interrupted process ends, another signal ends it at once, without a traceback.
            signal.signal(number, (lambda number, _: os._exit(128 + number)) if received else handler)


def _send_again(
    received: Sequence[int], report: Callable[[sys.UnraisableHookArgs], object], lost: sys.UnraisableHookArgs
) -> None:
    """Send a signal anew that came where no exception gets out: in a finalizer, or in a hook of a fork."""
    if lost.exc_type is KeyboardInterrupt and received:
        # A real signal: it wakes what waits in the system.
        main = threading.main_thread().ident
        threading.Timer(SENT_AGAIN, signal.pthread_kill, [main, received[-1]]).start()
    else:
        report(lost)


def blank(kind: type[Arguments], values: Mapping[str, Any]) -> Arguments:
    """Arguments of a ``kind`` that holds dataclasses, for :func:`run`.

    Args:
        kind: a dataclass.
        values: of its fields, and of the fields of dataclasses in it, by name. A field that has neither a value nor a
            default of its own is ``tyro.MISSING``: the command line has to give it.
    """
    hints, given = get_type_hints(kind), {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if dataclasses.is_dataclass(hints[field.name]):
            given[field.name] = blank(hints[field.name], values)
        elif field.name in values:
            given[field.name] = values[field.name]
        elif field.default is field.default_factory is dataclasses.MISSING:
            given[field.name] = tyro.MISSING
    return kind(**given)


def filled(default: Arguments, values: Mapping[str, Any], where: str) -> Arguments:
    """``default``, changed by values of its flags, by name.

    Args:
        default: see :func:`blank`.
        values: as Python, YAML or JSON has them.
        where: they were given, for messages.

    Raises:
        ValueError: an unknown name, a value of another type, or none for a flag that has to be given.
    """
    arguments = _with_values(default, dict(values), where)
    if missing := _missing(arguments):
        raise ValueError(f"{where}: {', '.join(missing)} must be given")
    return arguments


def _missing(config: Any) -> list[str]:
    """Names of the fields that have no value."""
    missing = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        missing += _missing(value) if dataclasses.is_dataclass(value) else [field.name] * (value is tyro.MISSING)
    return missing


def parse(
    default: Arguments, argv: Sequence[str], description: str | None = None, prog: str | None = None
) -> Arguments:
    """``default``, changed by the configuration file and the flags in ``argv``.

    Raises:
        ValueError: a configuration file that is not a mapping of known names to values of their types.
        SystemExit: an unknown flag or a value of the wrong type, with a message; or ``--help``.
    """
    argv = list(argv)
    path = _take_config(argv)
    if path is not None:
        default = _with_values(default, _read(path), path)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(
                type(default),
                default=default,
                args=argv,
                prog=prog,
                description=f"{description or ''}\n\n--config FILE.yaml sets any of these flags by name.",
                config=(tyro.conf.OmitArgPrefixes,),
                registry=FLAGS,
            )
    except SystemExit as stopped:
        if stopped.code:
            log.tell(f"error: {_unboxed(said.getvalue())}", stderr=True, exit_code=stopped.code)
        raise


def _unboxed(box: str) -> str:
    """What tyro says in a box, as one line; its frame, title and pages of help are left out."""
    lines = (line.strip("│╰╯─ ") for line in box.splitlines()[1:])
    told = takewhile(lambda line: not line.startswith(("For full helptext", "Argument helptext")), lines)
    return failures.shortened(" ".join(line for line in told if line), failures.LINE - len("error: "))


FLAGS = tyro.constructors.ConstructorRegistry()
"""How flags are read that tyro reads otherwise."""


@FLAGS.primitive_rule
def _number(kind: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[float] | None:
    """A number may be a fraction: ``8/255``."""
    if kind.type is not float:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="NUMBER",
        instance_from_str=lambda words: plugins.number(words[0]),
        is_instance=lambda value: isinstance(value, int | float) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


def _take_config(argv: list[str]) -> str | None:
    for index, word in enumerate(argv):
        if word.startswith("--config="):
            del argv[index]
            return word.partition("=")[2]
        if word == "--config":
            if index + 1 == len(argv):
                raise ValueError("--config: expected the path of a YAML file after it")
            path = argv[index + 1]
            del argv[index : index + 2]
            return path
    return None


def _read(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        try:
            values = yaml.safe_load(file) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected names and values of flags, got {type(values).__name__}")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def _with_values(default: Arguments, values: dict[str, Any], path: str) -> Arguments:
    kinds = fields.types_of(default)
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        near = {name: difflib.get_close_matches(name, kinds, n=1) for name in unknown}
        guesses = ", ".join(f"{found[0]} for {name}" for name, found in near.items() if found)
        known = f"known are {', '.join(sorted(kinds)[:SHOWN])}"
        known += f", ... ({len(kinds)} in all)" if len(kinds) > SHOWN else ""
        guess = f"; did you mean {guesses}?" if guesses else ""
        raise ValueError(f"{path}: unknown {', '.join(unknown)}; {known}{guess}")
    checked = {}
    for name, value in values.items():
        try:
            checked[name] = fields.converted(value, kinds[name])
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from None
    return _replaced(default, checked)


def _replaced(config: Any, values: dict[str, Any]) -> Any:
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = _replaced(value, values)
        elif field.name in values:
            changes[field.name] = values[field.name]
    return dataclasses.replace(config, **changes)
