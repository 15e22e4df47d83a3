"""What every job's command line has: typed flags, ``--config FILE.yaml``, and errors that a person can act on."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro
import yaml

from raypurify import runs
from raypurify.lease import LeaseLostError
from raypurify.published import redacted
from raypurify.retries import UnavailableError

Arguments = TypeVar("Arguments")


def run(main: Callable[[Arguments], Any], default: Arguments, argv: Sequence[str] | None = None) -> None:
    """Parse the command line onto ``default`` and run ``main``.

    A file given as ``--config FILE.yaml`` sets flags by their names; flags on the command line win. Errors of the input
    are printed without a traceback. The process exits with 0, with 1 where the work failed, with 2 where the input was
    refused, with 130 where it was interrupted.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        arguments = parse(default, sys.argv[1:] if argv is None else argv, description=main.__doc__)
        main(arguments)
    except (ValueError, FileNotFoundError, PermissionError, ImportError) as error:
        print(redacted(f"error: {error}"), file=sys.stderr)
        sys.exit(2)
    except (runs.StoppedError, UnavailableError, LeaseLostError) as error:
        print(redacted(f"error: {error}"), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: what is done stays done; give the same command to go on", file=sys.stderr)
        sys.exit(130)


def parse(default: Arguments, argv: Sequence[str], description: str | None = None) -> Arguments:
    """``default``, changed by the configuration file and the flags in ``argv``.

    Raises:
        ValueError: a configuration file that is not a mapping of known names.
        SystemExit: an unknown flag or a value of the wrong type, with a message; or ``--help``.
    """
    argv = list(argv)
    path = _take_config(argv)
    if path is not None:
        default = _with_values(default, _read(path), path)
    return tyro.cli(
        type(default),
        default=default,
        args=argv,
        description=f"{description or ''}\n\n--config FILE.yaml sets any of these flags by name.",
        config=(tyro.conf.OmitArgPrefixes,),
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
    names = set(_names(default))
    unknown = sorted(set(values) - names)
    if unknown:
        raise ValueError(f"{path}: unknown {', '.join(unknown)}; known are {', '.join(sorted(names))}")
    return _replaced(default, values)


def _names(config: Any) -> list[str]:
    names = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        names += _names(value) if dataclasses.is_dataclass(value) else [field.name]
    return names


def _replaced(config: Any, values: dict[str, Any]) -> Any:
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = _replaced(value, values)
        elif field.name in values:
            given = values[field.name]
            changes[field.name] = tuple(given) if isinstance(given, list) else given
    return dataclasses.replace(config, **changes)
