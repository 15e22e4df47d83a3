"""Every command of the README and of the pages is one that its own parser takes; those that are marked do run."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from doc_pages import ROOT, blocks, inline_commands, pages, write_files

from raypurify import plugins
from raypurify.command import jobs, main
from raypurify.runs import cli

HELP = {"--help", "--version", "--tyro-print-completion"}
COMMAND = "import sys; from raypurify.command.main import main; main()"
TRAININGS = ("weights/mnist/TRAINING.md", "weights/cifar10/TRAINING.md", "weights/photos/TRAINING.md")


def every_command() -> Iterator[pytest.param]:
    for page, text in {**pages(), **{name: (ROOT / name).read_text() for name in TRAININGS}}.items():
        for block in blocks(page, text):
            if block.language == "sh":
                for words in block.commands():
                    yield pytest.param(words, id=f"{page}:{block.line} {' '.join(words[:3])}")
        for words in inline_commands(text):
            yield pytest.param(words, id=f"{page} {' '.join(words)}")


@pytest.mark.parametrize("words", [*every_command()])
def test_a_command_is_one_that_its_parser_takes(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for page, text in pages().items():
        write_files(tmp_path, blocks(page, text))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    check(words, monkeypatch)


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    match words:
        case ["raypurify", first, *_] if first in HELP:
            pass
        case ["raypurify", *verb]:
            name, flags = main.verb_of(verb)
            check_flags(jobs.of(name), flags)
        case ["python", "-m", "raypurify.command", *verb]:
            assert not verb, "the command itself; test_main runs it"
        case ["python", script, *flags] if script.startswith("jobs/"):
            check_flags(job_of(script, monkeypatch), flags, needs_flags=True)
        case ["python", script, *flags]:
            source = (ROOT / script).read_text() + (ROOT / "benchmarks/_harness.py").read_text()
            assert all(f'"{flag}"' in source for flag in flags), f"{script} has no {flags}"
        case ["make", *targets]:
            assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M) for target in targets)
        case ["ray", "job", "submit", *rest]:
            check(rest[rest.index("--") + 1 :], monkeypatch)
        case ["eval", text]:
            check(text.removeprefix("$(").removesuffix(")").split(), monkeypatch)
        case ["pip", "install", *rest]:
            known = (ROOT / "pyproject.toml").read_text()
            assert all(f"\n{extra} = [" in known for extra in re.findall(r"\[(\w+)\]", " ".join(rest)))
        case _:
            assert " ".join(words) in {
                "source .venv/bin/activate",
                "export PYTHONPATH=$PWD",
                "pip check",
                "pip wheel --no-deps .",
                "ray job stop",
                "uv sync",
            }, "nobody has looked at this command"


def job_of(script: str, monkeypatch: pytest.MonkeyPatch) -> jobs.CommandLine:
    """The job that a script starts, before it starts it."""
    found: list[jobs.CommandLine] = []
    monkeypatch.setattr(jobs.CommandLine, "run", lambda job: found.append(job))
    runpy.run_path(str(ROOT / script), run_name="__main__")
    (job,) = found
    return job


def check_flags(job: jobs.CommandLine, flags: list[str], *, needs_flags: bool = False) -> None:
    """Parse the flags, and look for the attacks and weights that they name.

    A verb that stands in a sentence without flags is a name.
    """
    if "--help" in flags or not (flags or needs_flags):
        return
    arguments = cli.parse(job.default, flags)
    for weights in [word for word in flags if word.startswith("weights/")]:
        places = ROOT / weights, ROOT / "raypurify" / weights
        assert any((place / "config.json").exists() for place in places), f"there is no {weights}"
    for part in ("evaluation", "generation", "training"):
        named = getattr(arguments, part, None)
        for attack in [*getattr(named, "attacks", ()), *filter(None, [getattr(named, "attack", None)])]:
            if ":" not in attack:
                plugins.build("raypurify.attacks", plugins.Spec.parse(attack))


@pytest.mark.slow
def test_the_commands_that_are_marked_run(tmp_path: Path) -> None:
    marked = []
    for page, text in pages().items():
        found = blocks(page, text)
        write_files(tmp_path, found)
        marked += [(block, words) for block in found if block.runs for words in block.commands()]
    assert len(marked) > 10
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    for block, (program, *words) in marked:
        assert program == "raypurify"
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block.page}:{block.line}: {words}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
