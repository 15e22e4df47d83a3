"""What people type in Python: the verbs that compute, as functions whose keyword arguments are the verbs' flags.

``raypurify evaluate --classifiers a b --limit 100`` is ``raypurify.evaluate(classifiers=["a", "b"], limit=100)``, with
the same defaults and errors. These functions leave torch's threads and random numbers as they found them.

Where a flag names a classifier or a purifier that is there, a network (``nn.Module``) of your own may stand; where it
names an attack, an attack such as ``PGD(epsilon=8 / 255)``. Where it names a dataset, ``(x, y)`` may, for
``engine="local"``: see :func:`raypurify.evaluation.tensors.write_images`.
"""

from __future__ import annotations

import tempfile
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

    with _arguments("evaluate", jobs.evaluate(), engine, flags) as arguments:
        return run(arguments)


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

    with _arguments("attack", jobs.attack(), engine, flags) as arguments:
        return pa.Table.from_pylist([run(arguments)])


def certify(*, engine: Engine = "ray", **flags: Any) -> pa.Table:
    """Certify how far, in L2, no attacker can change a smoothed classifier's answers, as ``raypurify certify`` does.

    Args:
        engine: who does the work.
        flags: those of ``raypurify certify``, with underscores.

    Returns:
        The summary (``raypurify.runs.schema.CERTIFIED``), a row for each cell and radius.

    Raises:
        ValueError, FileNotFoundError, raypurify.runs.StoppedError: see :func:`evaluate`.
    """
    from raypurify.jobs.certify import run

    with _arguments("certify", jobs.certify(), engine, flags) as arguments:
        return run(arguments)


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

    with _arguments("clean", jobs.clean(), engine, flags) as arguments:
        return pa.Table.from_pylist([run(arguments).shown()])


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
    from raypurify.jobs.train import PRESETS, network, run

    if images not in PRESETS:
        raise ValueError(f"images: expected one of {', '.join(PRESETS)}; got {images!r}")
    with _arguments("train", jobs.train(images), engine, flags) as arguments:
        return network(arguments.training, run(arguments))


@contextmanager
def _arguments(verb: str, job: jobs.CommandLine, engine: str, flags: Mapping[str, Any]) -> Iterator[Any]:
    """The arguments of a job, by its flags; after the block torch's threads and generators are as they were before.

    Raises:
        ValueError: an unknown engine or flag, a value of another type, or a flag that is missing.
    """
    import torch

    from raypurify.jobs import own
    from raypurify.runs import cli

    if engine not in ("ray", "local"):
        raise ValueError(f"engine: expected 'ray' or 'local', got {engine!r}")
    for name in ("local", "dry_run", "log_format"):
        if name in flags:
            instead = "give engine='local'" if name == "local" else "it is the command's"
            raise ValueError(f"{verb}: {name}: {instead}")
    threads = torch.get_num_threads()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices):
        try:
            if verb != "clean":
                split = "train" if verb == "train" else "test"
                flags = own.written(flags, f"{folder}/arrays", split=split, local=engine == "local")
            named = {name: own.named(value) for name, value in flags.items()}
            yield cli.filled(job.default, {**named, "local": engine == "local"}, verb)
        finally:
            torch.set_num_threads(threads)
