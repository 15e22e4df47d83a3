"""The lines that a job prints: text for people, or one JSON object each for what collects logs.

Every line goes through :func:`tell`. One that begins with ``warning: `` or ``error: `` is of that level.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, TextIO

from raypurify.runs import fields
from raypurify.storage.published import published

Format = Literal["text", "json"]

_LEVEL = re.compile(r"(warning|error): |(DEBUG|INFO|WARNING|ERROR|CRITICAL):? ")
"""How a line begins that tells its level: one of this project's, or of a library's log."""


@dataclass(frozen=True, kw_only=True)
class LogFlags:
    """How a job prints its lines."""

    log_format: Format = "text"
    """text: lines for people, and a bar on a terminal. json: each line is one JSON object, with time, level, message,
    job and output, and with done, total, images_per_second and seconds_left where it tells of progress."""

    def __post_init__(self) -> None:
        fields.check_choices(self)


@dataclass(frozen=True)
class _Json:
    """Where objects are written to, and what all of them have."""

    out: TextIO
    err: TextIO
    common: dict[str, Any]


_json: _Json | None = None
"""None: lines are text."""


@contextmanager
def written(form: Format, **common: Any) -> Iterator[None]:
    """Let lines have a form in the block, and with JSON also what others write to ``sys.stdout`` and ``sys.stderr``.

    Args:
        form: of the lines.
        common: what each JSON object has.
    """
    global _json
    if form == "text":
        yield
        return
    before, out, err = _json, _Lines(stderr=False), _Lines(stderr=True)
    _json = _Json(sys.stdout, sys.stderr, common)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            yield
    finally:
        out.write("\n")
        err.write("\n")
        _json = before


def note(**common: Any) -> None:
    """Let each JSON object from now on have more."""
    if _json is not None:
        _json.common.update(common)


def is_text() -> bool:
    """Whether lines are for people, who also like bars and tables."""
    return _json is None


def tell(*lines: str, stderr: bool = False, **about: Any) -> None:
    """Print lines.

    Args:
        lines: as people read them.
        stderr: to standard error, where progress and failures go.
        about: what the lines tell, by its names. JSON has it beside the message.
    """
    if _json is None:
        print(*lines, sep="\n", file=sys.stderr if stderr else sys.stdout, flush=True)
        return
    stream = _json.err if stderr else _json.out
    # Threads write, too: an object goes out at once, with the end of its line.
    stream.write("".join(f"{_object(line, {**_json.common, **about})}\n" for line in lines))
    stream.flush()


def _object(line: str, about: dict[str, Any]) -> str:
    """A line as JSON, in which a number that is not finite is null."""
    begins = _LEVEL.match(line)
    level, message = ("info", line) if begins is None else (begins[0].strip(": ").lower(), line[begins.end() :])
    time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    values = published({"time": time, "level": level, "message": message, **about})
    return json.dumps(json.loads(json.dumps(values, default=str), parse_constant=lambda _: None))


class _Lines(io.TextIOBase):
    """A stream for what plugins and libraries print: its lines go through :func:`tell`."""

    def __init__(self, *, stderr: bool) -> None:
        self.stderr, self.rest = stderr, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).replace("\r", "\n").split("\n")
        for line in lines:
            if line.strip():
                tell(line, stderr=self.stderr)
        return len(text)
