"""The pages' templates, and what they are filled with alike."""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib import resources
from typing import Any

import jinja2

from raypurify.plugins import shown
from raypurify.report import formats


def render(name: str, *styles: str, script: str = "", **values: Any) -> str:
    """Fill the template of a page; every value that is not marked as safe is escaped.

    The page's policy lets this one script run, and no other.

    Args:
        name: a file of this package; it extends ``base.html.j2``.
        styles: style sheets of this package that go behind the one that all pages share.
        script: of this package, that the page runs.
        values: what the template names; ``title`` among them.
    """
    style = "\n".join(packaged(sheet) for sheet in ("style.css", *styles))
    code = packaged(script) if script else ""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return fill(name, style=style, script=code, script_hash=f"sha256-{digest}", **values)


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
        loader=jinja2.FunctionLoader(packaged),
    )
    filters = ("balls", "decimal", "integer", "mean_count", "pairs", "percent", "share", "size")
    environment.filters |= {"shown": shown, **{name: getattr(formats, name) for name in filters}}
    return environment


def packaged(name: str) -> str:
    """The text of a file of this package."""
    return resources.files("raypurify.report").joinpath(name).read_text(encoding="utf-8")
