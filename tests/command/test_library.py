"""The verbs as functions: the flags' names and defaults, tables and networks back, and a process left as it was."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import raypurify
from raypurify import storage
from raypurify.runs import schema

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
before = set(sys.modules)
import raypurify
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(loaded & {"ray", "torch", "pyarrow", "matplotlib", "tyro", "numpy"}))
"""


def test_importing_the_package_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_package_tells_what_it_has() -> None:
    assert set(raypurify.__all__) <= {*dir(raypurify)}
    for name in raypurify.__all__:
        assert getattr(raypurify, name)
    with pytest.raises(AttributeError, match="module 'raypurify' has no attribute 'evalute'"):
        _ = raypurify.evalute


def state() -> tuple[int, bytes]:
    return torch.get_num_threads(), torch.get_rng_state().numpy().tobytes()


def test_a_network_is_trained_loaded_attacked_and_evaluated(tmp_path: Path) -> None:
    before = state()
    common: dict[str, Any] = {"data": "digits", "engine": "local"}
    network = raypurify.train(
        model="a_net", classifier=None, limit=400, validation=0, epochs=2, output=f"{tmp_path}/a_net", **common
    )
    assert not network.training
    loaded = raypurify.load(f"{tmp_path}/a_net/model")
    x = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(x), network(x))
    summary = raypurify.evaluate(
        classifiers=[f"{tmp_path}/a_net/model"],
        purifiers=["identity", "threshold"],
        attacks=["fgsm,epsilon=0.1"],
        limit=20,
        actors=3,
        output=f"{tmp_path}/evaluation",
        **common,
    )
    assert summary.schema == schema.SUMMARY
    assert summary["purifier"].to_pylist() == ["identity", "threshold"]
    figures = raypurify.attack(
        input="digits",
        classifier=f"{tmp_path}/a_net/model",
        attack="fgsm,epsilon=0.1",
        limit=20,
        output=f"{tmp_path}/attacked",
        engine="local",
    )
    assert figures["n"].to_pylist() == [20]
    totals = raypurify.clean(
        input=f"{tmp_path}/attacked/images", purifier="threshold", output=f"{tmp_path}/clean", engine="local"
    )
    assert totals["cleaned"].to_pylist() == [20]
    assert state() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"clasifiers": ["a"]}, "evaluate: unknown clasifiers; known are actors, "),
        ({"data": "digits"}, "evaluate: classifiers must be given"),
        ({"data": "digits", "classifiers": "weights/a"}, "evaluate: classifiers: expected a list, each item text; got"),
        ({"limit": "ten"}, "evaluate: limit: expected a whole number or null; got 'ten'"),
        ({"local": True}, "evaluate: local: give engine='local'"),
        ({"dry_run": True}, "evaluate: dry_run: it is the command's"),
        ({"engine": "spark"}, "engine: expected 'ray' or 'local', got 'spark'"),
        ({"data": "digits", "classifiers": [], "engine": "local"}, "classifiers must name at least one"),
    ],
)
def test_a_wrong_flag_is_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        raypurify.evaluate(**flags)


def test_a_name_is_loaded_whatever_it_names() -> None:
    x = torch.full((1, 1, 4, 4), 0.7)
    assert raypurify.load("threshold")(x).unique().tolist() == [1]
    with pytest.raises(ValueError, match="classifier 'a_net' has to be trained first"):
        raypurify.load("a_net")


@pytest.mark.slow
def test_the_lines_of_the_readme_are_true(tmp_path: Path) -> None:
    (lines,) = re.findall(r"## From Python\n.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert storage.is_success(f"{tmp_path}/runs/py/a_net")
