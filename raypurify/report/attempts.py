"""What a page shows of ``run.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
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
    attempts = safe.get("attempts", [])
    last = attempts[-1] if attempts else {}
    lengths = [seconds(attempt) for attempt in attempts]
    return {
        "identity": _json(safe.get("identity")),
        "config": _json(last.get("config")),
        "counted": list(counted.values()),
        "attempts": [
            {
                "id": attempt.get("id", ""),
                "started": attempt.get("started", ""),
                "ended": attempt.get("ended") or "",
                "took": "" if took is None else formats.duration(took),
                "counts": [_count(attempt.get("counts", {}), name) for name in counted],
            }
            for attempt, took in zip(attempts, lengths, strict=True)
        ],
        "versions": flat(last.get("versions", {})),
        "hardware": flat(last.get("hardware", {})),
    }


def warnings(run: Mapping[str, Any]) -> list[str]:
    """What all attempts warned of, each once."""
    counts = [attempt.get("counts", {}) for attempt in run.get("attempts", [])]
    return redacted([*dict.fromkeys(text for some in counts for text in some.get("warnings", []))])


def seconds(attempt: Mapping[str, Any]) -> float | None:
    """How long an attempt took; None where that is not known, as of one that was cut off."""
    started, ended = time_of(attempt.get("started")), time_of(attempt.get("ended"))
    if started is None or ended is None or ended < started:
        return None
    return (ended - started).total_seconds()


def time_of(text: str | None) -> datetime | None:
    """A time in ``run.json``, with its zone, UTC; None where an attempt has no end."""
    return None if text is None else datetime.fromisoformat(text)


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


def _count(counts: Mapping[str, Any], name: str) -> str:
    return formats.three_digits(counts[name]) if name in counts else formats.NOT_AVAILABLE
