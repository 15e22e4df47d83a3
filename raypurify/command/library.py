"""What people type in Python: the verbs that compute, as functions whose keyword arguments are the verbs' flags.

``raypurify evaluate --classifiers a b --limit 100`` is ``raypurify.evaluate(classifiers=["a", "b"], limit=100)``, with
the same defaults and errors. These functions leave torch's threads and random numbers as they found them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from raypurify.command import jobs

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import nn

Engine = Literal["ray", "local"]
"""Who does the work: a Ray cluster, or this process without Ray (the flag ``--local``)."""


def evaluate(*, engine: Engine = "ray", **flags: Any) -> pa.Table:
    """Evaluate attack x purifier x classifier, as ``raypurify evaluate`` does.

    Args:
        engine: who does the work.
        flags: those of ``raypurify evaluate``, with underscores.

    Returns:
        The summary (``raypurify.runs.schema.SUMMARY``), a row for each cell of the grid.

    Raises:
        ValueError, FileNotFoundError: bad input, or an output that belongs to another run, or that one writes to.
        raypurify.runs.StoppedError: too many images cannot be decoded.
    """
    from raypurify.jobs.evaluate import run

    with _process_kept():
        return run(_arguments("evaluate", jobs.evaluate(), engine, flags))


def attack(*, engine: Engine = "ray", **flags: Any) -> pa.Table:
    """Attack a dataset and write the attacked images beside the clean ones, as ``raypurify attack`` does.

    Args:
        engine: who does the work.
        flags: those of ``raypurify attack``, with underscores.

    Returns:
        One row: how many images there are, and what the attack reached before and after they were rounded to 8 bits.

    Raises:
        ValueError, FileNotFoundError, raypurify.runs.StoppedError: see :func:`evaluate`.
    """
    import pyarrow as pa

    from raypurify.jobs.attack import run

    with _process_kept():
        return pa.Table.from_pylist([run(_arguments("attack", jobs.attack(), engine, flags))])


def clean(*, engine: Engine = "ray", **flags: Any) -> pa.Table:
    """Clean images of any size and number, as ``raypurify clean`` does.

    Args:
        engine: who does the work.
        flags: those of ``raypurify clean``, with underscores.

    Returns:
        One row: how many images were cleaned and rejected, and how they changed.

    Raises:
        ValueError, FileNotFoundError, raypurify.runs.StoppedError: see :func:`evaluate`.
    """
    import pyarrow as pa

    from raypurify.jobs.clean import run

    with _process_kept():
        return pa.Table.from_pylist([run(_arguments("clean", jobs.clean(), engine, flags)).shown()])


def train(images: jobs.Images = "digits", *, engine: Engine = "ray", **flags: Any) -> nn.Module:
    """Train a purifier for a classifier, or a classifier (``classifier=None``), as ``raypurify train`` does.

    Args:
        images: which defaults: those of ``raypurify train digits``, or of ``raypurify train photographs``.
        engine: who does the work.
        flags: those of the verb, with underscores.

    Returns:
        The trained network on the CPU, in eval, its parameters frozen; ``OUTPUT/model`` is its checkpoint.

    Raises:
        ValueError, FileNotFoundError, raypurify.runs.StoppedError: see :func:`evaluate`; also where it diverged.
    """
    from raypurify.jobs.train import network, run

    with _process_kept():
        arguments = _arguments("train", jobs.train(images), engine, flags)
        return network(arguments.training, run(arguments))


def _arguments(verb: str, job: jobs.Job, engine: str, flags: Mapping[str, Any]) -> Any:
    """The arguments of a job, by its flags.

    Raises:
        ValueError: an unknown engine or flag, a value of another type, or a flag that is missing.
    """
    from raypurify.runs import cli

    if engine not in ("ray", "local"):
        raise ValueError(f"engine: expected 'ray' or 'local', got {engine!r}")
    for name, instead in (("local", "give engine='local'"), ("dry_run", "it is the command's")):
        if name in flags:
            raise ValueError(f"{verb}: {name}: {instead}")
    return cli.filled(job.default, {**flags, "local": engine == "local"}, verb)


@contextmanager
def _process_kept() -> Iterator[None]:
    """Leave torch's threads and generators as they were before the block."""
    import torch

    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
            yield
    finally:
        torch.set_num_threads(threads)
