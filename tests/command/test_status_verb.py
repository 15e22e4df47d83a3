"""``raypurify status``: what it prints, and what it loads."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from raypurify import runs, storage
from raypurify.command.status import StatusArguments, main

COMMAND = "import sys; from raypurify.command.main import main; main()"


@pytest.fixture
def run(tmp_path: Path) -> str:
    output = str(tmp_path / "run")
    identity = {"input": "https://user:secret@host/data", "attack": f"fgsm,epsilon={8 / 255},labels=x", "unit": 20}
    with runs.hold(output, identity) as held:
        held.counts["images"] = 1000
        with held.attempt({}, {}):
            storage.write_table(storage.join(output, "images/a.parquet"), pa.table({"id": ["a"]}))
            rejects = pa.table({"reason": ["no image\x1b[2J"]})
            storage.write_table(storage.join(output, "rejects/a.parquet"), rejects)
    return output


def test_a_run_is_told_in_a_few_lines(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(StatusArguments(output=run))
    text = capsys.readouterr().out
    told = dict(line.split(maxsplit=1) for line in text.splitlines())
    told = {name: value.strip() for name, value in told.items()}
    assert told["run"] == "attack, not finished, and nobody works on it: give its command again, and it goes on"
    assert told["attack"] == "fgsm,epsilon=8/255,labels=x"
    assert told["units"] == "1 of 50"
    assert told["images"] == "about 20 of 1,000"
    assert told["lease"] == "nobody's"
    assert told["rejected"] == "1"
    assert told["1"] == "x no image\\x1b[2J"
    assert told["time"] == "left  unknown yet"
    assert "secret" not in text


def test_neither_ray_nor_torch_is_loaded(run: str) -> None:
    script = f"{COMMAND}; assert not {{'ray', 'torch', 'matplotlib'}} & {{*sys.modules}}"
    done = subprocess.run([sys.executable, "-c", script, "status", run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_no_run_exits_with_2(tmp_path: Path) -> None:
    words = [sys.executable, "-c", COMMAND, "status", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path} holds no run")
