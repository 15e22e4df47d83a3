"""Fields of configurations: values from a file, held against the fields' types, and choices."""

from __future__ import annotations

import dataclasses
import math
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from raypurify import plugins

NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def check_choices(config: Any) -> None:
    """Hold the fields of a dataclass that are one of several words against these words.

    Raises:
        ValueError: names the field, the words and the value.
    """
    for name, kind in get_type_hints(type(config)).items():
        if get_origin(kind) is Literal:
            try:
                converted(getattr(config, name), kind)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None


def converted(value: Any, kind: Any) -> Any:
    """A value of YAML or JSON as a field of type ``kind`` has it: lists as tuples, numbers such as 1e-3 as floats.

    Raises:
        ValueError: what was expected, and what came.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        fits = isinstance(value, str) and value in arguments
    elif origin in (Union, types.UnionType):
        return _one_of(value, arguments)
    elif origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"expected {described(kind)}; got {_shown(value)}")
        return tuple(converted(item, arguments[0]) for item in value)
    elif kind is float:
        number = _number(value)
        if math.isfinite(number):
            return number
        fits = False
    else:
        fits = type(value) is kind
    if not fits:
        raise ValueError(f"expected {described(kind)}; got {_shown(value)}")
    return value


def _one_of(value: Any, kinds: tuple[Any, ...]) -> Any:
    # As on the command line, None may be written out.
    if type(None) in kinds and value in (None, "None"):
        return None
    for kind in kinds:
        try:
            return converted(value, kind)
        except ValueError:
            continue
    raise ValueError(f"expected {_either(kinds)}; got {_shown(value)}")


def _number(value: Any) -> float:
    """NaN for what is no number. Text may be one: 8/255, and 1e-3, which YAML 1.1 takes for text without a point."""
    try:
        return math.nan if isinstance(value, bool) else plugins.number(str(value))
    except (TypeError, ValueError, OverflowError):
        return math.nan


def described(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        return f"a list, each item {described(get_args(kind)[0])}"
    if get_origin(kind) in (Union, types.UnionType):
        return _either(get_args(kind))
    return NAMES.get(kind, str(kind))


def _either(kinds: tuple[Any, ...]) -> str:
    return " or ".join(map(described, kinds))


def _shown(value: Any) -> str:
    return f"{value!r} ({NAMES.get(type(value), 'a list' if isinstance(value, list) else type(value).__name__)})"


def types_of(config: Any) -> dict[str, Any]:
    """The types of the fields of a dataclass, and of the dataclasses in it, by the fields' names."""
    hints = get_type_hints(type(config))
    kinds: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        kinds |= types_of(value) if dataclasses.is_dataclass(value) else {field.name: hints[field.name]}
    return kinds
