"""What failed, as one line that a person can act on; where it does not tell all, it names the file of the traceback."""

from __future__ import annotations

import re
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from raypurify import storage
from raypurify.runs.lease import LeaseLostError
from raypurify.storage.published import encodable, redacted
from raypurify.storage.retries import UnavailableError

LINE = 300
"""Characters of a line on what nobody foresaw."""
SHORTEST = 100
"""Characters that such a line leaves at least to what was raised, however long the name of the file is."""


class StoppedError(RuntimeError):
    """A job was stopped for a reason that its message tells in full."""


class FailedError(RuntimeError):
    """Work on images failed in a way that nobody foresaw: the message names the images, the traceback the place."""


REFUSED = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError, ImportError)
"""What says of the input, before the work, that it cannot be as the user gave it."""
FAILED = (StoppedError, LeaseLostError, OSError)
"""What ends the work, with a message that tells all."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def told(error: BaseException) -> tuple[int, str]:
    """The exit code of a job that raised an error, and the line that tells of it.

    A traceback is written to a temporary file where the line does not tell all, unless :func:`keep` has written it.
    """
    code, reason, tells_all = _judged(error)
    text = " ".join(str(reason).split("\n")) if tells_all else _first_line(reason)
    if tells_all:
        return code, redacted(f"error: {text}")
    end = f". The traceback is in {getattr(error, 'kept_in', None) or _kept_beside(error)}"
    room = max(LINE - len(f"error: {end}"), SHORTEST)
    return code, f"error: {shortened(redacted(text), room)}{redacted(end)}"


def shortened(text: str, room: int) -> str:
    """``text``, cut where it has more than ``room`` characters."""
    return text if len(text) <= room else f"{text[: room - 1]}…"


def keep(error: BaseException, output: str, attempt: str) -> None:
    """Write the traceback of an error that does not tell all into a run's output, by the id of the attempt.

    Nothing is written where the output holds no run, or cannot be written.
    """
    if _judged(error)[2]:
        return
    with suppress(Exception):
        if storage.exists(storage.join(output, "run.json")):
            url = storage.join(output, "errors", f"{attempt}.txt")
            storage.write_bytes(url, _trace(error))
            error.kept_in = url  # type: ignore[attr-defined]


def _kept_beside(error: BaseException) -> str:
    with tempfile.NamedTemporaryFile(prefix="raypurify-error-", suffix=".txt", delete=False) as file:
        file.write(_trace(error))
    return str(Path(file.name))


def _trace(error: BaseException) -> bytes:
    """The traceback, and what workers wrote to standard error, where the engine has noted that as ``workers_said``."""
    said = getattr(error, "workers_said", "")
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    text += f"\nWhat workers wrote last:\n{said}\n" if said else ""
    return encodable(redacted(_COLOUR.sub("", text))).encode()


def _judged(error: BaseException) -> tuple[int, BaseException, bool]:
    """The exit code, the error that says why, and whether its message tells all."""
    reason = raised(error)
    from_worker = reason is not error
    outage = next((one for one in _chain(reason) if isinstance(one, UnavailableError)), None)
    if outage is not None:
        return 1, outage, True
    if isinstance(reason, REFUSED) and not from_worker:
        return 2, reason, True
    return 1, reason, isinstance(reason, FAILED) and not (from_worker and isinstance(reason, REFUSED))


def raised(error: BaseException) -> BaseException:
    """What a worker raised, out of what Ray and Ray Train have wrapped it in; another error as it is."""
    while (inner := _inside(error)) is not None:
        error = inner
    return error


def _inside(error: BaseException) -> BaseException | None:
    """What Ray, or Ray Train, has wrapped: what a worker raised."""
    failures = getattr(error, "worker_failures", None) or {}
    inner = (getattr(error, "cause", None), getattr(error, "controller_failure", None), *failures.values())
    return next((one for one in inner if isinstance(one, BaseException) and one is not error), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    is_plain = isinstance(error, (FailedError, *REFUSED, *FAILED))
    return text if is_plain and text else f"{type(error).__name__}: {text}".rstrip(": ")
