"""``--log-format json``: whatever a job prints, each line is one JSON object."""

import json
import math
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from raypurify.command.main import main
from raypurify.runs import cli, log

ROOT = Path(__file__).parents[2]
COMMAND = "from raypurify.command.main import main; main()"
PLUGINS = """
import logging, sys, warnings
import torch

class Talks(torch.nn.Module):
    def forward(self, x):
        print("a plugin", end=" ")
        print("speaks\\n")
        print("aside", file=sys.stderr)
        logging.getLogger("a.library").warning("look out")
        return x

class Fails(torch.nn.Module):
    def forward(self, x):
        if x.mean() > 0:
            raise KeyError("no such place")
        return x
"""


def objects(text: str) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def command(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "talking.py").write_text(PLUGINS)
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    words = (sys.executable, "-c", COMMAND, *words)
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def evaluation(classifier: str, *more: str) -> list[str]:
    words = ["evaluate", "--data", "digits", "--limit", "40", "--classifiers", classifier, "--attacks", "fgsm"]
    return [*words, "--local", "--output", "run", *more]


def test_every_line_of_an_evaluation_is_an_object(small_classifier: str, tmp_path: Path) -> None:
    words = evaluation(small_classifier, "--purifiers", "talking:Talks", "--log-format", "json")
    done = command(*words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    results, told = objects(done.stdout), objects(done.stderr)
    for line in (*results, *told):
        assert list(line)[:5] == ["time", "level", "message", "job", "output"], line
        assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)
        assert (line["job"], line["output"]) == ("evaluate", "run")
        assert line["level"] in ("info", "warning")
    (progress,) = (line for line in told if line["message"].startswith("evaluating: "))
    assert (progress["done"], progress["total"], progress["seconds_left"]) == (40, 40, 0)
    assert progress["images_per_second"] > 0
    assert {"level": "warning", "message": "a.library: look out"}.items() <= next(
        line for line in told if "look out" in line["message"]
    ).items()
    assert {"a plugin speaks", "aside"} <= {line["message"] for line in (*results, *told)}
    (cell,) = (line["result"] for line in results if line["message"] == "result")
    assert (cell["attack"], cell["purifier"]) == ("fgsm", "talking:Talks")
    assert results[-1]["message"] == f"report: {tmp_path / 'run/report.html'}"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--log-format", "json", "--batch", "many"], 2, "many"),
        (["--limit", "-1", "--log-format=json"], 2, "limit"),
        (["--config", "json.yaml", "--atacks", "fgsm"], 2, "--atacks"),
        (["--log-format", "json", "--config", "missing.yaml"], 2, "missing.yaml"),
        (["--config", "json.yaml", "--purifiers", "talking:Fails"], 1, "KeyError: 'no such place'"),
    ],
)
def test_a_failure_is_one_object(
    words: list[str],
    code: int,
    told: str,
    small_classifier: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "json.yaml").write_text("log_format: json\n")
    flags = evaluation(small_classifier, *words)
    if code == 1:
        done = command(*flags, folder=tmp_path)
        status, printed = done.returncode, done.stdout + done.stderr
    else:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["raypurify", *flags])
        with pytest.raises(SystemExit) as ended:
            main()
        status, printed = ended.value.code, "".join(capfd.readouterr())
    assert status == code, printed
    *before, line = objects(printed)
    assert (line["level"], line["exit_code"], line["job"]) == ("error", code, "evaluate")
    assert told in line["message"]
    assert not line["message"].startswith("error: ")
    assert all(other["level"] == "info" for other in before)


def test_a_training_tells_of_its_epochs(tmp_path: Path) -> None:
    words = ["train", "digits", "--data", "digits", "--model", "a_net", "--classifier", "None", "--limit", "200"]
    words += ["--epochs", "2", "--validation", "50", "--local", "--output", "run", "--log-format", "json"]
    done = command(*words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (line for line in objects(done.stdout + done.stderr) if "loss" in line)
    assert (first["epoch"], second["epoch"], second["epochs"]) == (1, 2, 2)
    assert math.isfinite(second["loss"])
    assert second["images_per_second"] > 0
    assert 0 <= second["scores"]["accuracy"] <= 1


def test_a_form_is_known_or_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="log_format: expected one of text, json; got 'xml'"):
        log.LogFlags(log_format="xml")  # type: ignore[arg-type]
    path = tmp_path / "run.yaml"
    path.write_text("log_format: json\n")
    assert cli.parse(log.LogFlags(), ["--config", str(path)]) == log.LogFlags(log_format="json")


def test_what_json_has_no_word_for(capsys: pytest.CaptureFixture[str]) -> None:
    with log.written("json", job="train"):
        log.tell("error: https://user:w0rd@host/x?sig=s1gn4tur3", loss=math.nan, scores={"a": math.inf}, path=Path("p"))
        log.tell("\udc80 and \x1b", stderr=True)
    log.tell("error: plain text", loss=1.0)
    captured = capsys.readouterr()
    first, last = captured.out.splitlines()
    assert last == "error: plain text"
    told, *_ = objects(first)
    assert (told["level"], told["loss"], told["scores"], told["path"]) == ("error", None, {"a": None}, "p")
    assert "w0rd" not in first + captured.err
    assert "s1gn4tur3" not in first + captured.err
    json.dumps(objects(captured.err)[0]["message"], ensure_ascii=False).encode()
