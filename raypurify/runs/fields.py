"""Fields of configurations: their types, and those that are one of several words."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_origin, get_type_hints

from raypurify.plugins import values


def check_choices(config: Any) -> None:
    """Hold the fields of a dataclass that are one of several words against these words.

    Raises:
        ValueError: names the field, the words and the value.
    """
    for name, kind in get_type_hints(type(config)).items():
        if get_origin(kind) is Literal:
            try:
                values.converted(getattr(config, name), kind)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None


def types_of(config: Any) -> dict[str, Any]:
    """The types of the fields of a dataclass, and of the dataclasses in it, by the fields' names."""
    hints = get_type_hints(type(config))
    kinds: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        kinds |= types_of(value) if dataclasses.is_dataclass(value) else {field.name: hints[field.name]}
    return kinds
