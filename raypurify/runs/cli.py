"""What every job's command line has: typed flags, ``--config FILE.yaml``, and errors that a person can act on."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import io
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from functools import partial
from itertools import takewhile
from types import FrameType
from typing import Any, TypeVar, get_origin, get_type_hints

import tyro
import yaml

from raypurify.plugins.values import converted, described, number
from raypurify.runs import failures, fields, log

Arguments = TypeVar("Arguments")


SHOWN = 8
"""Names of flags that a line lists at most."""
OTHER_NAMES = {"--data": "--input", "--input": "--data"}
"""What other verbs call the images that come in."""
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
    kinds = fields.types_of(default)
    said = io.StringIO()
    try:
        _check_flags(argv, kinds)
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
            told = failures.shortened(_as_a_line(said.getvalue(), argv, kinds), failures.LINE - len("error: "))
            log.tell(f"error: {told}", stderr=True, exit_code=stopped.code)
        raise


def _check_flags(argv: Sequence[str], kinds: Mapping[str, Any]) -> None:
    """Refuse flags that are none of the ``kinds``, before tyro tells of others that lack.

    Raises:
        ValueError: names them, and the flags that are nearest.
    """
    known = {f"--{name.replace('_', '-')}" for name in kinds}
    known |= {f"--no-{name.replace('_', '-')}" for name, kind in kinds.items() if kind is bool}
    flags = [word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")]
    unknown = [flag for flag in flags if flag not in known and flag != "--help" and not flag.startswith("--tyro-")]
    if unknown:
        near = dict.fromkeys(meant for flag in unknown if (meant := _meant(flag, known)))
        guess = f"; did you mean {', '.join(near)}?" if near else "."
        raise ValueError(f"unknown {', '.join(unknown)}{guess} --help tells of each flag")


def _meant(flag: str, known: Collection[str]) -> str | None:
    """The known flag that an unknown one is most like, if any is."""
    other = OTHER_NAMES.get(flag)
    found = [other] if other in known else difflib.get_close_matches(flag, known, n=1)
    return found[0] if found else None


def _as_a_line(box: str, argv: Sequence[str], kinds: Mapping[str, Any]) -> str:
    """What tyro says in a box, as one line that says what was expected, and what came."""
    if "Missing from" in box:
        missing = _ARGUMENT.findall(box.partition("For full helptext")[0])
        return f"{' and '.join(missing)} must be given; --help tells of each flag"
    lines = (line.strip("│╰╯─ ") for line in box.splitlines()[1:])
    told = takewhile(lambda line: not line.startswith(("For full helptext", "Argument helptext")), lines)
    text = " ".join(line for line in told if line.strip("-"))
    flag = _OF_FLAG.match(text)
    name = flag[1].replace("-", "_") if flag is not None else ""
    if flag is not None and name in kinds:
        # On the command line null is written None.
        expected = described(kinds[name]).replace("null", "None")
        values = _values(argv, flag[1])
        # What begins with a dash is taken for a flag, but behind an equals sign.
        hint = f". Write --{flag[1]}={values[0]}" if kinds[name] is str and values else ""
        return f"--{flag[1]}: expected {expected}; got {' '.join(map(repr, values)) or 'nothing'}{hint}"
    if text.startswith("Unrecognized") and (several := _several(argv, kinds)):
        return several
    return re.sub(r"^Error parsing [\w.]+: ", "", text)


def _several(argv: Sequence[str], kinds: Mapping[str, Any]) -> str | None:
    """A line on a flag that takes one value, where several stand behind it."""
    for name, kind in kinds.items():
        flag = name.replace("_", "-")
        values = _values(argv, flag)
        if len(values) > 1 and kind is not bool and get_origin(kind) is not tuple:
            shown = " ".join(map(repr, values))
            return f"--{flag}: expected one value; got {shown}. Quote one that has a space or a * in it"
    return None


_ARGUMENT = re.compile(r"^(?:│ | {2}) {4}(\S+)", re.MULTILINE)
"""An argument in tyro's box of those that lack, where its help stands under it, further to the right."""
_OF_FLAG = re.compile(r"(?:Error parsing |(?:Missing value|invalid choice '.*?') for argument ')--([\w-]+)")


def _values(argv: Sequence[str], flag: str) -> list[str]:
    """The words behind a flag, where it stands last: there it counts."""
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--") else [word])]
    words = [word.replace("_", "-") if word.startswith("--") else word for word in words]
    places = [place for place, word in enumerate(words) if word == f"--{flag}"]
    behind = words[places[-1] + 1 :] if places else []
    return list(takewhile(lambda word: not word.startswith("--"), behind))


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
        instance_from_str=lambda words: number(words[0]),
        is_instance=lambda value: isinstance(value, int | float) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


def _take_config(argv: list[str]) -> str | None:
    """Take ``--config FILE`` out of the words: the file.

    Raises:
        ValueError: there is no file behind it, or it stands there twice.
    """
    paths = []
    for index in reversed([index for index, word in enumerate(argv) if word.partition("=")[0] == "--config"]):
        _, equals, path = argv[index].partition("=")
        end = index + (1 if equals else 2)
        if end > len(argv):
            raise ValueError("--config: expected the path of a YAML file after it")
        paths.append(path if equals else argv[index + 1])
        del argv[index:end]
    if len(paths) > 1:
        raise ValueError(f"--config: expected one file, got {' and '.join(reversed(paths))}")
    return paths[0] if paths else None


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.load(file, _Once) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--config: {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected names and values of flags, got {type(values).__name__}")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


class _Once(yaml.SafeLoader):
    """Refuses a name that stands twice in a mapping, whose first value would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if names.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands there twice", key.start_mark)
        return super().construct_mapping(node, deep=deep)


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
            checked[name] = converted(value, kinds[name])
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
