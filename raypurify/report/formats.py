"""How the page writes numbers, parameters and configurations."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping

from raypurify.plugins import shown
from raypurify.storage.published import redacted
from raypurify.storage.published import visible as visible

NOT_AVAILABLE = "–"
NO_BREAK = "\u00a0"


def decimal(value: float | None, digits: int = 2) -> str:
    """A number with a fixed count of decimals; None and nan have none to show."""
    if value is None or math.isnan(value):
        return NOT_AVAILABLE
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{digits}f}".replace("-", "−")


def percent(share: float | None) -> str:
    """A share in [0, 1] as percent with two decimals, without the sign."""
    return decimal(None if share is None else 100 * share)


def share(count: float, total: float) -> str:
    """A part as percent, with its sign; never 0 of something, nor all where some is missing."""
    text = "" if total == 0 else f"{percent(count / total)}%"
    if text == "0.00%" and count > 0:
        return "< 0.01%"
    return "> 99.99%" if text == "100.00%" and count < total else text


def integer(value: float | None) -> str:
    """A count, its thousands separated."""
    return NOT_AVAILABLE if value is None else f"{value:,.0f}"


def mean_count(value: float) -> str:
    """A mean of counts: a decimal only where it is not whole."""
    return f"{value:,.1f}".removesuffix(".0")


def three_digits(value: float) -> str:
    """A positive measure to three digits, its whole ones separated and never cut."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def ball(norm: str | None, eps: float | None) -> str:
    """The ball an attack stays in, in words."""
    if eps is None:
        return "minimal distance" if norm is None else f"minimal {norm_name(norm)} distance"
    return f"{norm_name(norm)} ε = {shown(eps)}".strip().replace(" ", NO_BREAK)


def balls(names: Iterable[str]) -> str:
    """Several of :func:`ball`'s names in a row, each norm named once."""
    radii: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        norm, equals, radius = name.rpartition(f"={NO_BREAK}")
        radii.setdefault(norm + equals or radius, []).append(radius if equals else "")
    return "; ".join(norm + ", ".join(filter(None, values)) for norm, values in radii.items())


def norm_name(norm: str | None) -> str:
    return "" if norm is None else {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}.get(norm, norm)


def parameters(text: str, radius: str | None) -> dict[str, str]:
    """An attack's parameters (JSON) as they are shown: without the radius, which stands apart, and without nulls."""
    given = {key: item for key, item in json.loads(text).items() if key != radius and item is not None}
    return {key: shown(item) if isinstance(item, float) else str(item) for key, item in redacted(given).items()}


def pairs(params: Mapping[str, str]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in params.items())


def duration(seconds: float) -> str:
    """A length of time to the second."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute} min" if hours else f"{minute} min {second} s" if minute else f"{second} s"


def size(count: float | None) -> str:
    """A count of bytes, to three digits."""
    if count is None:
        return NOT_AVAILABLE
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g}{NO_BREAK}{unit}"
        count /= 1000
    return f"{count:,.4g}{NO_BREAK}TB"
