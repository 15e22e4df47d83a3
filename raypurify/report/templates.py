"""The pages' templates, and what they are filled with alike."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jinja2

from raypurify.report import formats


def render(name: str, *styles: str, **values: Any) -> str:
    """Fill the template ``name``; every value that is not marked as safe is escaped.

    Args:
        name: a file of this package; it extends ``base.html.j2``.
        styles: style sheets of this package that go behind the one that all pages share.
        values: what the template names; ``title`` among them.
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_packaged),
    )
    environment.filters |= {
        "balls": formats.balls,
        "decimal": formats.decimal,
        "epsilon": formats.epsilon,
        "integer": formats.integer,
        "mean_count": formats.mean_count,
        "pairs": formats.pairs,
        "percent": formats.percent,
        "share": formats.share,
        "size": formats.size,
    }
    style = "\n".join(_packaged(sheet) for sheet in ("style.css", *styles))
    return environment.get_template(name).render(style=style, **values)


def _packaged(name: str) -> str:
    return resources.files("raypurify.report").joinpath(name).read_text(encoding="utf-8")
