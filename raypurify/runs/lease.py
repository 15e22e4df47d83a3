"""One run at a time on an output: a lease in it, with its owner and a heartbeat.

The lease is the object ``_LEASE``. Its owner writes it anew every few seconds (the heartbeat), always over the version
that it wrote itself. Who finds one with a fresh heartbeat is refused; one whose heartbeat has stopped for the time that
it states is taken over, by a write over the version that was judged: of two takers one wins, and an owner that wakes
up again (after a suspended machine, a network cut) finds another version, and stops.

Whether a heartbeat has stopped is judged by the store's clock alone, its time of the last write against its time now:
S3 and file systems tell both. On other stores the lease is watched for its stated time on this machine's monotonic
clock, and must not change. The clocks of the hosts never matter. Where the owner was a process of this very host, and
has ended, nobody waits.

:mod:`raypurify.storage.conditional` says which stores give the conditional write that this needs (S3, local and shared
file systems). On others two that start within the same moment, or while one is being taken over, may both go on, until
the next heartbeat of the one that wrote first finds the other's lease, and :meth:`Lease.check` tells it.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from raypurify import storage
from raypurify.storage import conditional

NAME = "_LEASE"

HEARTBEAT = 10.0
"""Seconds between two heartbeats."""

ASKED_AGAIN = 2.0
"""Seconds after which a worker that goes on writing asks again whether its attempt holds the lease."""

GOOD_FOR = 60.0
"""Seconds without a heartbeat after which a lease can be taken over."""


class LeaseLostError(RuntimeError):
    """Another run has taken the output over, or may have: nothing more is to be written to it."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """What a lease says: its JSON has these fields."""

    attempt: str
    """Id of the attempt that holds the output."""
    host: str
    pid: int
    process: str
    """What this process is, beside its id: the system's start, its process namespace, its own start; "" if unknown."""
    started: str
    """When the attempt began: ISO 8601, UTC."""
    heartbeat: str
    """The last heartbeat: ISO 8601, UTC, for people. No decision looks at it."""
    good_for: float
    """Seconds without a heartbeat after which it can be taken over."""

    def text(self) -> bytes:
        return (json.dumps(asdict(self), indent=2) + "\n").encode()


class Lease:
    """A lease that this process holds. A daemon thread keeps it alive."""

    def __init__(self, url: str, holder: Holder, version: str, heartbeat: float) -> None:
        self.holder = holder
        self._url = url
        self._version = version
        self._heartbeat = heartbeat
        self._renewed = time.monotonic()
        self._lost = False
        self._trouble: Exception | None = None
        self._busy = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @property
    def attempt(self) -> str:
        """Id of the attempt that holds it, for :func:`check` in workers."""
        return self.holder.attempt

    def check(self) -> None:
        """Return while the lease is held. Call it before what must not be written by two.

        Raises:
            LeaseLostError: another run holds it, or it could not be renewed for the time that it is good for.
        """
        if self._overdue():
            self._renew()
        if self._lost:
            raise LeaseLostError(_lost(self._url, self.attempt))
        if self._overdue():
            raise LeaseLostError(
                f"{self._url}: attempt {self.attempt} could not renew its lease for {self.holder.good_for:g} s, so "
                f"another run may hold it ({self._trouble}); run the command again once the store answers"
            )

    def release(self) -> None:
        """Stop the heartbeat, and remove the lease if it is still this one."""
        self._ended.set()
        self._thread.join(self._heartbeat)
        # A heartbeat that the store does not answer may still write it. It runs out by itself.
        if not self._lost and not self._thread.is_alive():
            conditional.remove(self._url, self._version)

    def _overdue(self) -> bool:
        return time.monotonic() - self._renewed > self.holder.good_for

    def _beat(self) -> None:
        while not self._lost and not self._ended.wait(self._heartbeat):
            self._renew()

    def _renew(self) -> None:
        with self._busy:
            begun = time.monotonic()
            self.holder = replace(self.holder, heartbeat=_now())
            try:
                version = conditional.replace(self._url, self.holder.text(), self._version)
            except Exception as error:
                # The next heartbeat tries again; until then, check() counts the seconds.
                self._trouble = error
                return
            if version is None:
                self._lost = True
            else:
                self._version, self._renewed = version, begun


@contextmanager
def hold(
    output: str, owner: str | None = None, *, heartbeat: float = HEARTBEAT, good_for: float = GOOD_FOR
) -> Iterator[Lease]:
    """Hold the lease of an output while the block runs. It is released at the end, also after an exception.

    Args:
        output: URL of the run's folder.
        owner: id of this attempt, as workers will give it to :func:`check`; a new one if None.
        heartbeat: seconds between heartbeats.
        good_for: seconds without a heartbeat after which others may take over.

    Raises:
        ValueError: the output cannot be written to; or another run holds it: names it, since when, when the lease would
            run out, and what to do.
    """
    if not 0 < heartbeat < good_for:
        raise ValueError(f"heartbeat = {heartbeat:g}: expected more than 0 and less than good_for = {good_for:g} s")
    url = storage.join(output, NAME)
    now = _now()
    holder = Holder(
        attempt=owner or uuid.uuid4().hex[:12],
        host=socket.gethostname(),
        pid=os.getpid(),
        process=_process(os.getpid()),
        started=now,
        heartbeat=now,
        good_for=good_for,
    )
    try:
        version = _take(url, holder)
    except OSError as error:
        if error.errno not in (*storage.UNWRITABLE, errno.ENOENT):  # the last: no folder can be made there
            raise
        reason = os.strerror(error.errno)
        raise ValueError(f"{output} cannot be written to: {reason}. Give another --output, or mend this") from error
    lease = Lease(url, holder, version, heartbeat)
    try:
        yield lease
    finally:
        # A store that fails here must not hide how the block ended: the lease runs out by itself.
        with suppress(OSError):
            lease.release()


def check(output: str, attempt: str) -> None:
    """Return if this attempt holds the output, as its store says now. For workers, before they publish.

    Raises:
        LeaseLostError: it does not; names who does. A straggler of a dead attempt ends here.
    """
    url = storage.join(output, NAME)
    holder = _holder(url)
    if holder is None or holder[0].attempt != attempt:
        raise LeaseLostError(_lost(url, attempt, holder and holder[0]))


def seen(output: str) -> tuple[Holder, float | None] | None:
    """Who holds an output, as one look tells that writes nothing; None where there is no lease.

    Beside the holder stand the seconds that the lease is still good for: 0 or less where it can be taken over; None
    where the store does not tell. Of a local file this host's clock is asked, which may differ from a server's.

    Raises:
        ValueError: the file is not a lease.
    """
    url = storage.join(output, NAME)
    found = _holder(url)
    if found is None:
        return None
    holder, _ = found
    if _is_gone(holder):
        return holder, 0.0
    try:
        is_local, path = storage.is_local(url), storage.filesystem(url)[1]
        age = time.time() - os.stat(path).st_mtime if is_local else conditional.age(url)
    except FileNotFoundError:
        return None
    return holder, None if age is None else holder.good_for - age


class Watch:
    """The lease as a worker sees it that writes file after file: for any of its threads, and asked for now and then."""

    def __init__(self, output: str, attempt: str, *, seconds: float = ASKED_AGAIN) -> None:
        """
        Args:
            output: URL of the run's folder.
            attempt: that the worker is of.
            seconds: for which an answer counts.
        """
        self.attempt = attempt
        self._output, self._seconds = output, seconds
        self._good_until = 0.0
        self._busy = threading.Lock()

    def check(self) -> None:
        """Return if the attempt held the output less than ``seconds`` ago.

        Raises:
            LeaseLostError: as :func:`check`.
        """
        with self._busy:
            if time.monotonic() >= self._good_until:
                self._ask()

    def check_now(self) -> None:
        """:func:`check`, before what must not be written by two."""
        with self._busy:
            self._ask()

    def _ask(self) -> None:
        asked = time.monotonic()
        check(self._output, self.attempt)
        self._good_until = asked + self._seconds


def _take(url: str, holder: Holder) -> str:
    """Write the lease, and return its version once it is ours."""
    while not conditional.create(url, holder.text()):
        found = _holder(url)
        if found is None:
            # Released just now.
            time.sleep(0.1)
            continue
        other, version = found
        left = _seconds_left(url, other, version)
        if left > 0:
            raise ValueError(_refusal(url, other, left))
        if conditional.replace(url, holder.text(), version):
            break
    # Where the store has no conditions, another may have written in the same moment.
    found = _holder(url)
    if found is None or found[0] != holder:
        raise ValueError(f"{url}: another run took the lease in the same moment; wait for it, or choose another output")
    return found[1]


def _holder(url: str) -> tuple[Holder, str] | None:
    """Who holds the lease, and its version; None where there is none.

    Raises:
        ValueError: the file is not a lease.
    """
    try:
        data, version = conditional.read(url)
    except FileNotFoundError:
        return None
    try:
        return Holder(**json.loads(data)), version
    except (TypeError, ValueError) as error:
        raise ValueError(f"{url} is not a lease ({error}); remove it if no run writes to this output") from error


def _seconds_left(url: str, holder: Holder, version: str) -> float:
    """Seconds that a lease is still good for; 0 or less when it can be taken over."""
    if _is_gone(holder):
        return 0.0
    try:
        age = conditional.age(url)
    except FileNotFoundError:
        return 0.0
    if age is not None:
        return holder.good_for - age
    end = time.monotonic() + holder.good_for
    while time.monotonic() < end:
        time.sleep(min(1.0, holder.good_for / 10))
        found = _holder(url)
        if found is None or found[1] != version:
            return 0.0 if found is None else holder.good_for
    return 0.0


def _process(pid: int) -> str:
    """What a living process is, beside its id, which can come again; "" where the system does not say, or it ended."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
        # The name of the program, in parentheses, may hold anything. State is the first field after it, start the 20th.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else f"{boot} {namespace} {fields[19]}"


def _is_gone(holder: Holder) -> bool:
    """Whether the holder was a process of this host, and ended. A process that cannot be seen from here is not gone."""
    here = _process(os.getpid()).rpartition(" ")[0]
    if not here or holder.host != socket.gethostname() or holder.process.rpartition(" ")[0] != here:
        return False
    return _process(holder.pid) != holder.process


def _refusal(url: str, holder: Holder, left: float) -> str:
    return (
        f"{url}: attempt {holder.attempt} on host {holder.host} (process {holder.pid}) writes to this output since "
        f"{holder.started}; if that run is no longer alive, its lease runs out in {left:.0f} s; "
        "wait for it to end, stop it, or choose another output"
    )


def _lost(url: str, attempt: str, holder: Holder | None = None) -> str:
    now = f"attempt {holder.attempt} on host {holder.host}" if holder else "another run or none"
    return f"{url}: attempt {attempt} no longer holds the output, {now} does; this one stops, run it again after that"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()
