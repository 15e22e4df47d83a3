"""Values as people write them: numbers such as 8/255, and what a field's type takes of YAML and JSON."""

from __future__ import annotations

import math
import types
from typing import Any, Literal, Union, get_args, get_origin

NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}

SHOWN = 100
"""Characters of a value that a message shows at most: that of a tensor may have any number."""


def number(text: str) -> float:
    """A number as people write it: ``0.3``, ``3e-1``, or a fraction such as ``8/255`` or ``0.5/255``.

    Raises:
        ValueError: it is none.
    """
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text!r} is no number") from None


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
        found = _number(value)
        if math.isfinite(found):
            return found
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
        return math.nan if isinstance(value, bool) else number(str(value))
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
    text = " ".join(repr(value).split())
    text = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    return f"{text} ({NAMES.get(type(value), 'a list' if isinstance(value, list) else type(value).__name__)})"
