"""What a job says of a failure, and where its traceback goes; where the work fails, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raypurify import runs
from raypurify.classifiers import d_net
from raypurify.command.main import main
from raypurify.runs import failures
from raypurify.storage import checkpoints

ROOT = Path(__file__).parents[2]
COMMAND = "from raypurify.command.main import main; main()"
PLUGINS = """
import torch

class Fails(torch.nn.Module):
    def forward(self, x):
        if x.mean() > 0:
            raise KeyError("http://user:w0rd@host/x?sig=s1gn4tur3 has no key")
        return x
"""


def command(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    words = (sys.executable, "-c", COMMAND, *words)
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs of which three are larger, a configuration with a wrong key, a colour classifier."""
    folder = tmp_path_factory.mktemp("place")
    for number in range(40):
        path = folder / "photos/test" / str(number % 10) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        side = 32 if number in (7, 19, 33) else 28
        Image.fromarray(np.full((side, 28), number, np.uint8)).save(path)
    (folder / "wrong.yaml").write_text("atacks: [fgsm]\n")
    (folder / "own_plugins.py").write_text(PLUGINS)
    torch.manual_seed(0)
    network = d_net.build(growth=4, layers=(2,))
    config = {"kind": "classifier", "plugin": "d_net", "params": {"growth": 4, "layers": [2]}}
    checkpoints.save(str(folder / "colour"), config, network.state_dict())
    return folder


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (
            "--data photos",
            2,
            ["3 of 40 images are not 28x28", "7.png 28x32", "19.png", "33.png", "--resize 28 --crop 28"],
        ),
        ("--data digits --precision fp16", 2, ["'fp16'", "--precision", "float32", "bfloat16"]),
        ("--data digits --limit 40 --limit many", 2, ["'many'", "--limit"]),
        ("--data digits --atacks fgsm", 2, ["--atacks", "--attacks"]),
        ("--data digits --config wrong.yaml", 2, ["wrong.yaml: unknown atacks", "did you mean attacks for atacks?"]),
        ("--data s3://no-such-bucket/images", 2, ["s3://no-such-bucket/images", "there is no such bucket"]),
        ("--data digits --classifiers ./colour", 2, ["colour", "(28, 28, 1)", "those of 3 channel(s)"]),
        ("--data digits --purifiers own_plugins:Fails", 1, ["digits#", "images", "KeyError", "has no key"]),
    ],
)
def test_a_failure_is_one_line(
    words: str,
    code: int,
    told: list[str],
    place: Path,
    small_classifier: str,
    s3: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    flags = words.split()
    flags += [] if "--classifiers" in flags else ["--classifiers", small_classifier]
    output = tmp_path / "run"
    flags = ["evaluate", *flags, "--attacks", "none", "--local", "--output", str(output)]
    if code == 1:
        done = command(*flags, folder=place)
        status, out, err = done.returncode, done.stdout, done.stderr
    else:
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", ["raypurify", *flags])
        with pytest.raises(SystemExit) as ended:
            main()
        status, (out, err) = ended.value.code, capfd.readouterr()
    assert status == code, err
    line = err.strip()
    assert line.startswith("error: ")
    assert "\n" not in line
    assert len(line) <= 300
    assert all(text in line for text in told), line
    assert "Traceback" not in out
    if code == 1:
        (kept,) = (output / "errors").iterdir()
        assert line.endswith(f". The traceback is in {kept}")
        text = kept.read_text()
        assert all(part in text for part in ("Traceback (most recent call last)", "own_plugins.py", "KeyError"))
        assert "w0rd" not in line + text
        assert "s1gn4tur3" not in line + text
    else:
        assert not output.exists()


def test_without_a_run_a_traceback_is_kept_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        raise KeyError("x" * 500 + "\nmore")
    except KeyError as error:
        failures.keep(error, str(tmp_path / "nothing"), "attempt")
        error.workers_said = "Fatal Python error"  # type: ignore[attr-defined]
        code, line = failures.told(error)
    (kept,) = tmp_path.iterdir()
    assert (code, len(line)) == (1, max(300, len(f"error: . The traceback is in {kept}") + 100))
    assert line.startswith("error: KeyError: 'xxx")
    assert line.endswith(f"…. The traceback is in {kept}")
    assert "Fatal Python error" in kept.read_text()


class WrappedError(Exception):
    """As Ray and Ray Train raise what a worker raised."""

    def __init__(self, **inside: object) -> None:
        super().__init__("a traceback\nof many lines")
        self.__dict__.update(inside)


@pytest.mark.parametrize(
    "error",
    [
        WrappedError(cause=ValueError("one row is wrong")),
        WrappedError(controller_failure=WrappedError(worker_failures={1: ValueError("one row is wrong")})),
        runs.FailedError("one row is wrong\nand more"),
    ],
)
def test_what_a_worker_raised_is_told_with_the_file(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, line = failures.told(error)
    (kept,) = tmp_path.iterdir()
    assert (code, line) == (1, f"error: one row is wrong. The traceback is in {kept}")


def test_a_message_of_many_lines_is_one() -> None:
    assert failures.told(ValueError("not YAML:\n  line 3")) == (2, "error: not YAML:   line 3")
