"""Why inputs were rejected, counted: reasons that differ in numbers and details only are one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from raypurify import storage

KINDS = 1000
"""How many reasons are counted apart."""


class Reasons:
    """Counts reasons by their kind: what they have in common but for numbers and details."""

    def __init__(self) -> None:
        self.kinds: dict[str, tuple[int, str | None]] = {}

    def add(self, reasons: Iterable[str]) -> None:
        for reason in reasons:
            kind = re.sub(r"\d+", "N", re.split(r"[;(]| begins with", reason)[0]).strip()[:120]
            if kind not in self.kinds and len(self.kinds) >= KINDS:
                kind = "others"
            count, known = self.kinds.get(kind, (0, reason))
            self.kinds[kind] = count + 1, known if known == reason else None

    def counts(self) -> dict[str, int]:
        """How often each; one that was the same each time is there in full."""
        found: dict[str, int] = {}
        for kind, (count, reason) in self.kinds.items():
            shown = kind if reason is None else reason[:300]
            found[shown] = found.get(shown, 0) + count
        return found


def counted(urls: Iterable[str]) -> dict[str, int]:
    """How many rejects there are for each reason in some tables, the most frequent first."""
    reasons = Reasons()
    with ThreadPoolExecutor(storage.REQUESTS_AT_ONCE) as pool:
        for table in pool.map(lambda url: storage.read_table(url, ["reason"]), urls):
            reasons.add(table["reason"].to_pylist())
    return dict(sorted(reasons.counts().items(), key=lambda item: -item[1]))
