"""The pages' templates, and what they are filled with alike."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

import jinja2

from raypurify.plugins import shown
from raypurify.report import formats


def render(name: str, *styles: str, **values: Any) -> str:
    """Fill the template of a page; every value that is not marked as safe is escaped.

    Args:
        name: a file of this package; it extends ``base.html.j2``.
        styles: style sheets of this package that go behind the one that all pages share.
        values: what the template names; ``title`` among them.
    """
    return fill(name, style="\n".join(_packaged(sheet) for sheet in ("style.css", *styles)), **values)


def fill(name: str, **values: Any) -> str:
    """Fill the template ``name`` of this package; every value that is not marked as safe is escaped."""
    return _environment().get_template(name).render(**values)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_packaged),
    )
    filters = ("balls", "decimal", "integer", "mean_count", "pairs", "percent", "share", "size")
    environment.filters |= {"shown": shown, **{name: getattr(formats, name) for name in filters}}
    return environment


def _packaged(name: str) -> str:
    return resources.files("raypurify.report").joinpath(name).read_text(encoding="utf-8")
