import io
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from raypurify import runs
from raypurify.cleaning.cleaner import CleaningConfig
from raypurify.evaluation.generation import GenerationConfig
from raypurify.evaluation.grid import EvaluationConfig
from raypurify.runs import cli
from raypurify.storage.retries import UnavailableError
from raypurify.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    steps: int = 3
    """How many."""
    names: tuple[str, ...] = ("a",)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}")


@dataclass(frozen=True, kw_only=True)
class Flags:
    inner: Inner = field(default_factory=Inner)
    output: str = "here"


def test_flags_have_their_plain_names() -> None:
    assert cli.parse(Flags(), ["--steps", "5", "--names", "x", "y"]) == Flags(inner=Inner(steps=5, names=("x", "y")))


def test_a_file_sets_flags_and_the_command_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("steps: 7\nnames: [p, q]\noutput: s3://bucket/run\n")
    expected = Flags(inner=Inner(steps=9, names=("p", "q")), output="s3://bucket/run")
    assert cli.parse(Flags(), [f"--config={path}", "--steps", "9"]) == expected
    assert cli.parse(Flags(), ["--steps", "9", "--config", str(path)]) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 1\n", "unknown stepz; known are names, output, steps"),
        (
            "stepz: 1\noutptu: x\nq: 1\n",
            r"unknown outptu, q, stepz; .* did you mean output for outptu, steps for stepz\?$",
        ),
        ("- a\n", "expected names"),
        ("a: [", "not YAML"),
        ("steps: 1\nsteps: 2\n", "bad.yaml is not YAML: steps stands there twice"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        cli.parse(Flags(), ["--config", str(path)])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"output: \xe9")
    for name in ("latin.yaml", "none.yaml", "."):
        with pytest.raises(ValueError, match=rf"^--config: {re.escape(str(tmp_path / name))} cannot be read: "):
            cli.parse(Flags(), ["--config", str(tmp_path / name)])
    with pytest.raises(ValueError, match=r"^--config: expected one file, got a\.yaml and b\.yaml$"):
        cli.parse(Flags(), ["--config", "a.yaml", "--config=b.yaml"])


def test_a_mapping_of_a_file_may_be_an_alias(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("names: &names [p, q]\nsteps: 7\n")
    assert cli.parse(Flags(), ["--config", str(path)]).inner == Inner(steps=7, names=("p", "q"))


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("output: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ValueError, match="not YAML"):
        cli.parse(Flags(), ["--config", str(path)])


def refuse(_: Flags) -> None:
    raise ValueError("expected a, got b")


@pytest.mark.parametrize(
    ("argv", "message"),
    [([], "error: expected a, got b"), (["--steps", "0"], "steps must be at least 1"), (["--stepz", "1"], "--stepz")],
)
def test_refused_input_exits_with_2_and_says_why(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.run(refuse, Flags(), argv)
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err + captured.out
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (runs.StoppedError("too many rejects"), 1, "error: too many rejects"),
        (UnavailableError("no answer"), 1, "error: no answer"),
        (KeyboardInterrupt(), 130, "give the same command to go on"),
    ],
)
def test_a_job_that_was_stopped_says_so_without_a_traceback(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(_: Flags) -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        cli.run(stop, Flags(), [])
    assert stopped.value.code == code
    assert message in capsys.readouterr().err


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.run(refuse, Flags(), ["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("--steps", "How many.", "--output", "--config FILE.yaml"))


INTERRUPTED = """
import os, signal, sys
from dataclasses import dataclass
from raypurify.runs import cli, lease

@dataclass(frozen=True, kw_only=True)
class Flags:
    output: str

def work(flags):
    with lease.hold(flags.output):
        number, moment = signal.Signals[sys.argv.pop()], sys.argv.pop()
        if moment == "fork":
            os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), number))
            os.fork() or os._exit(0)
        else:
            os.kill(os.getpid(), number)
        signal.pause()

cli.run(work, Flags(output=sys.argv[1]), [])
"""


@pytest.mark.parametrize("moment", ["work", "fork"])
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_a_job_with_one_line_and_releases_its_lease(
    name: str, code: int, moment: str, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "run"), moment, name]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == "interrupted: what is done stays done; give the same command to go on\n"
    assert not list((tmp_path / "run").iterdir())


class WorkerError(Exception):
    """As Ray raises what a worker raised: the error itself is its ``cause``."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"a traceback of many lines: {cause}")
        self.cause = cause


class OutageError(ValueError):
    """As readers of data raise an outage: a ValueError, ``from`` it."""

    def __init__(self) -> None:
        self.__cause__ = UnavailableError("no answer")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("steps: 0"), 2, "error: steps: 0"),
        (NotADirectoryError("a file"), 2, "error: a file"),
        (OutageError(), 1, "error: no answer"),
        (WorkerError(UnavailableError("no answer")), 1, "error: no answer"),
        (OSError("no space left"), 1, "error: no space left"),
        (runs.StoppedError("too many rejects"), 1, "error: too many rejects"),
    ],
)
def test_the_exit_code_follows_one_rule(
    error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Flags) -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        cli.run(fail, Flags(), [])
    assert (stopped.value.code, capsys.readouterr().err) == (code, f"{line}\n")


@dataclass(frozen=True, kw_only=True)
class Typed:
    precision: Literal["float32", "bfloat16"] = "float32"
    rate: float = 1.0
    limit: int | None = None
    names: tuple[str, ...] = ()
    radii: tuple[float, ...] = ()
    overwrite: bool = False


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("rate: 1e-3", {"rate": 1e-3}),
        ("rate: 2", {"rate": 2.0}),
        ("radii: [1e-1, 0.2, 1]", {"radii": (0.1, 0.2, 1.0)}),
        ("radii: [8/255, 0.3]", {"radii": (8 / 255, 0.3)}),
        ("rate: 0.5/255", {"rate": 0.5 / 255}),
        ("limit: null", {"limit": None}),
        ("limit: 5", {"limit": 5}),
        ("names: []", {"names": ()}),
        ("overwrite: yes", {"overwrite": True}),
        ("precision: bfloat16", {"precision": "bfloat16"}),
    ],
)
def test_a_file_sets_values_of_each_type(text: str, changes: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    assert cli.parse(Typed(), ["--config", str(tmp_path / "run.yaml")]) == Typed(**changes)  # type: ignore[arg-type]


def test_a_flag_takes_a_fraction(capsys: pytest.CaptureFixture[str]) -> None:
    read = cli.parse(Typed(), ["--rate", "0.5/255", "--radii", "8/255", "0.3", "1e-3"])
    assert (read.rate, read.radii) == (0.5 / 255, (8 / 255, 0.3, 1e-3))
    with pytest.raises(SystemExit):
        cli.parse(Typed(), ["--rate", "fast"])
    assert "--rate" in capsys.readouterr().err


@dataclass(frozen=True, kw_only=True)
class Asked:
    data: str
    """Help of several words, which would fill a line and hide what is missing behind itself, and then still goes on."""
    victims: tuple[str, ...]
    typed: Typed


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--victims", "a"], "--data must be given; --help tells of each flag"),
        ([], "--data and --victims must be given; --help tells of each flag"),
        (["--dta", "a"], "unknown --dta; did you mean --data? --help tells of each flag"),
        (["--input", "a"], "unknown --input; did you mean --data? --help tells of each flag"),
        (["--no-data"], "unknown --no-data; did you mean --data? --help tells of each flag"),
        (["--limit", "ten"], "--limit: expected a whole number or None; got 'ten'"),
        (["--limit=ten"], "--limit: expected a whole number or None; got 'ten'"),
        (["--radii", "0.1", "x", "--rate", "1"], "--radii: expected a list, each item a number; got '0.1' 'x'"),
        (["--rate", "--overwrite"], "--rate: expected a number; got nothing"),
        (["--precision", "fp16"], "--precision: expected one of float32, bfloat16; got 'fp16'"),
        (["--overwrite", "yes"], "Unrecognized options: yes"),
        (["--data", "-dash"], "--data: expected text; got '-dash'. Write --data=-dash"),
        (
            ["--data", "my photos", "b.png", "--rate", "1"],
            "--data: expected one value; got 'my photos' 'b.png'. Quote one that has a space or a * in it",
        ),
    ],
)
def test_a_command_line_is_refused_by_one_line(
    argv: list[str], line: str, encoding: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    given = [] if line.startswith("--data ") else ["--data", "d", "--victims", "a"]
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda _: None, cli.blank(Asked, {}), [*given, *argv])
    assert (stopped.value.code, capsys.readouterr().err) == (2, f"error: {line}\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("precision: fp16", "precision: expected one of float32, bfloat16; got 'fp16' (text)"),
        ("rate: fast", "rate: expected a number; got 'fast' (text)"),
        ("rate: 8/0", "rate: expected a number; got '8/0' (text)"),
        ("rate: .nan", "rate: expected a number; got"),
        (f"rate: {10**400}", "rate: expected a number; got 1000"),
        ("rate: true", "rate: expected a number; got True (true or false)"),
        ('limit: "ten"', "limit: expected a whole number or null; got 'ten' (text)"),
        ("limit: 1.5", "limit: expected a whole number or null; got 1.5 (a number)"),
        ("names: fgsm", "names: expected a list, each item text; got 'fgsm' (text)"),
        ("names: [1]", "names: expected text; got 1 (a whole number)"),
        ("overwrite: 1", "overwrite: expected true or false; got 1 (a whole number)"),
    ],
)
def test_a_value_of_another_type_is_refused_by_file_and_name(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        cli.parse(Typed(), ["--config", str(path)])


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainingConfig(data="digits", model="a_net", precision="fp16"),  # type: ignore[arg-type]
        lambda: TrainingConfig(data="digits", model="a_net", augmentation="afine"),  # type: ignore[arg-type]
        lambda: EvaluationConfig(data="digits", classifiers=("a",), split="all"),  # type: ignore[arg-type]
        lambda: GenerationConfig(input="digits", attack="none", classifier="a", precision="fp16"),  # type: ignore[arg-type]
        lambda: CleaningConfig(input="a", purifier="b", shards="tar"),  # type: ignore[arg-type]
    ],
)
def test_no_config_holds_an_unknown_choice(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"expected one of .*; got '"):
        make()
