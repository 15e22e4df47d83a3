"""``run.json``: what a run computes, and the attempts at it."""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from importlib import metadata
from typing import Any

from raypurify import __version__, storage
from raypurify.runs import failures, lease
from raypurify.runs.status import job_of
from raypurify.storage import retries
from raypurify.storage.published import identified, redacted

PACKAGES = ("torch", "ray", "pyarrow", "numpy", "torchattacks", "scikit-image")


CONTENTS = {
    "data": "dataset",
    "input": "dataset",
    "classifier": "classifier_sha256",
    "more_classifiers": "more_classifiers_sha256",
    "purifier": "purifier_sha256",
    "initial": "initial_sha256",
}
"""The field that says what is there, for each field of an identity that names a place: content may lie elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where a job writes."""

    output: str
    """The folder that the run is written to: a path, or a URL such as s3://bucket/run."""
    overwrite: bool = False
    """Start afresh: remove the run that the output holds."""
    shared_filesystem: bool = False
    """Say that a local output is on a file system that every host of the cluster sees."""


@dataclass(kw_only=True)
class Run:
    """A run's folder. ``counts`` of the attempt in progress is free to be filled."""

    output: str
    identity: Mapping[str, Any]
    attempts: list[dict[str, Any]]
    finished: bool
    counts: dict[str, Any] = field(default_factory=dict)
    held: lease.Lease | None = None
    """The output's lease: its attempt is this one. It is checked before ``run.json`` is written."""
    requests: dict[str, int] = field(default_factory=retries.counts)
    """What this process had asked of stores when it opened the run: see :func:`raypurify.storage.retries.counts`."""

    @cached_property
    def id(self) -> str:
        """The id of the attempt."""
        return self.held.attempt if self.held is not None else uuid.uuid4().hex[:12]

    def check(self) -> None:
        """Return while no other run may be writing to the output.

        Raises:
            LeaseLostError: see :meth:`raypurify.runs.lease.Lease.check`.
        """
        if self.held is not None:
            self.held.check()

    @contextmanager
    def attempt(self, hardware: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[None]:
        """Record an attempt: its start when entered, its end and counts when left, also by an exception."""
        entry: dict[str, Any] = {
            "id": self.id,
            "started": _now(),
            "ended": None,
            "versions": versions(),
            "hardware": dict(hardware),
            "config": dict(config),
            "counts": self.counts,
        }
        self.attempts.append(entry)
        self._write()
        try:
            yield
        finally:
            entry["ended"] = _now()
            self._write()

    def begin(self) -> None:
        """Write the identity, before anything else is written to the output."""
        self._write()

    def finish(self) -> None:
        """Mark the run as whole."""
        self.check()
        storage.mark_success(self.output)

    def _write(self) -> None:
        self.check()
        run = {"identity": identified(self.identity), "attempts": redacted(self.attempts)}
        storage.write_json(storage.join(self.output, "run.json"), run)


def check_lasting(output: str) -> None:
    """Refuse an output in Ray's copy of a submitted job's working directory.

    Raises:
        ValueError: Ray deletes that folder after the job.
    """
    if storage.is_local(output) and "/runtime_resources/working_dir_files/" in storage.absolute(output):
        raise ValueError(
            f"{output} is in Ray's copy of the working directory, which is deleted after the job: "
            "give --output a URL such as s3://bucket/run, or an absolute path"
        )


@contextmanager
def hold(output: str, identity: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[Run]:
    """:func:`open_run`, by a process that no other writes to the output beside while the block runs.

    Raises:
        ValueError: another process holds the output's lease; see also :func:`check_lasting` and :func:`open_run`.
    """
    check_lasting(output)
    with lease.hold(output) as held:
        run = open_run(output, identity, overwrite=overwrite, held=held)
        try:
            yield run
        except Exception as error:
            failures.keep(error, output, run.id)
            raise


def open_run(
    output: str, identity: Mapping[str, Any], *, overwrite: bool = False, held: lease.Lease | None = None
) -> Run:
    """Begin a run in ``output``, or go on with the one that is there.

    Args:
        output: URL of a folder.
        identity: what is computed, as JSON values. Credentials in URLs are neither written nor compared.
        overwrite: remove the run that is there, whatever its identity.
        held: the output's lease.

    Raises:
        ValueError: the output holds a run of another identity (the message names what differs), or other files.
    """
    path = storage.join(output, "run.json")
    if not storage.exists(path) and not _is_free(output):
        raise ValueError(f"{output} holds files, but no run.json, so they are something else's: give another --output")
    if overwrite:
        storage.remove(storage.join(output, storage.SUCCESS))
        # Cut off here, what is left would look like a run with much of its work done.
        storage.write_json(path, {"identity": {"overwriting": True}, "attempts": []})
        storage.clear(output, keep=(lease.NAME, "run.json"))
        storage.remove(path)
    if not storage.exists(path):
        return Run(output=output, identity=identity, attempts=[], finished=False, held=held)
    run = storage.read_json(path)
    _check_identity(output, run["identity"], identity)
    return Run(
        output=output, identity=identity, attempts=run["attempts"], finished=storage.is_success(output), held=held
    )


def _is_free(output: str) -> bool:
    """Whether nothing is there but a lease, drafts of one, or empty objects that stand for folders."""
    names = (url.rpartition("/")[2] for url in storage.list_files(output))
    return all(name in ("", lease.NAME) or storage.is_draft(name) for name in names)


def identity_of(output: str) -> dict[str, Any]:
    """The identity of the run that an output holds; empty where it holds none."""
    path = storage.join(output, "run.json")
    return dict(storage.read_json(path)["identity"]) if storage.exists(path) else {}


def _check_identity(output: str, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    # The signature in a URL changes, and is not written.
    there, wanted = identified(there), identified(wanted)
    held, asked = job_of(there), job_of(wanted)
    if held is not None and asked is not None and held != asked:
        raise ValueError(
            f"{output} holds a run of the job {held}; this one is of the job {asked}. Give another --output, or "
            "--overwrite to start afresh"
        )
    for name in dict.fromkeys([*wanted, *there]):
        content = CONTENTS.get(name)
        if content is not None and content in there and content in wanted:
            continue
        if there.get(name) != wanted.get(name):
            raise ValueError(
                f"{output} holds a run with {name} = {there.get(name)!r}; this one has {name} = {wanted.get(name)!r}"
                f"{_other_content(name, wanted)}. Give another --output, or --overwrite to start afresh"
            )


def _other_content(name: str, wanted: Mapping[str, Any]) -> str:
    """What a hash of another content means, for the end of a sentence."""
    place = next((place for place, content in CONTENTS.items() if content == name and wanted.get(place)), None)
    return "" if place is None else f": {place} = {wanted[place]!r} holds something else than the run began with"


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what it stands on, as far as that is installed."""
    installed = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return {"raypurify": __version__, "python": platform.python_version(), **installed}


def machine() -> dict[str, Any]:
    """The machine this process runs on."""
    return {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
