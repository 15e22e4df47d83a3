"""What a page shows of ``run.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from raypurify.report import formats
from raypurify.storage.published import redacted


def shown(run: Mapping[str, Any], counted: Mapping[str, str]) -> dict[str, Any]:
    """The run as the templates' parts take it, without credentials; whatever it lacks is left out.

    Args:
        run: ``run.json``.
        counted: which of an attempt's counts stand in the table, and their headings.
    """
    safe = redacted(run)
    attempts = listed(safe)
    return {
        "identity": _json(safe.get("identity")),
        "config": _json(attempts[-1].get("config") if attempts else None),
        "counted": list(counted.values()),
        "attempts": [
            {
                "id": attempt.get("id", ""),
                "started": attempt.get("started") or "",
                "ended": attempt.get("ended") or "",
                "took": _took(attempt),
                "counts": [_count(attempt.get("counts"), name) for name in counted],
            }
            for attempt in attempts
        ],
        "versions": flat((attempts[-1].get("versions") if attempts else None) or {}),
        "hardware": flat((attempts[-1].get("hardware") if attempts else None) or {}),
    }


def listed(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The attempts of ``run.json``."""
    return [attempt for attempt in run.get("attempts") or [] if isinstance(attempt, dict)]


def warnings(run: Mapping[str, Any]) -> list[str]:
    """What all attempts warned of, each once."""
    counts = [attempt["counts"] for attempt in listed(run) if isinstance(attempt.get("counts"), Mapping)]
    texts = [text for some in counts if isinstance(some.get("warnings"), list) for text in some["warnings"]]
    return [redacted(str(text)) for text in dict.fromkeys(map(str, texts))]


def seconds(attempt: Mapping[str, Any]) -> float | None:
    """How long an attempt took; None where that is not known, as of one that was cut off."""
    started, ended = time_of(attempt.get("started")), time_of(attempt.get("ended"))
    if started is None or ended is None or ended < started:
        return None
    return (ended - started).total_seconds()


def time_of(value: Any) -> datetime | None:
    """A time in ``run.json``, ISO 8601 or seconds since 1970; without a zone it is UTC. None where it is neither."""
    try:
        # Python 3.10 does not read the Z that stands for UTC.
        time = (
            datetime.fromisoformat(value.removesuffix("Z"))
            if isinstance(value, str)
            else datetime.fromtimestamp(value, timezone.utc)
        )
        return time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time.astimezone(timezone.utc)
    except (ValueError, TypeError, OverflowError, OSError):
        return None


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested dicts as one, their keys joined by dots."""
    if isinstance(value, dict):
        return {
            k: v for key, item in value.items() for k, v in flat(item, f"{prefix}.{key}" if prefix else key).items()
        }
    if isinstance(value, list):
        return {prefix: ", ".join(str(item) for item in value)}
    return {prefix: str(value)}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) if value else ""


def _count(counts: Any, name: str) -> str:
    count = counts.get(name) if isinstance(counts, dict) else None
    if isinstance(count, int | float) and math.isfinite(count):
        return formats.three_digits(count)
    return formats.NOT_AVAILABLE


def _took(attempt: Mapping[str, Any]) -> str:
    took = seconds(attempt)
    return "" if took is None else formats.duration(took)
