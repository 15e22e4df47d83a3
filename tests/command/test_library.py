"""The verbs as functions: the flags' names and defaults, tables and networks back, and a process left as it was."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import raypurify
from raypurify import models, storage
from raypurify.attacks import Attacked, counted, torchattacks
from raypurify.attacks.pgd import PGD
from raypurify.runs import schema

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
        ({"clasifiers": ["a"]}, "evaluate: unknown clasifiers; known are actor_resources, actors, "),
        ({"data": "digits"}, "evaluate: classifiers must be given"),
        ({"data": "digits", "classifiers": "weights/a"}, "evaluate: classifiers: expected a list, each item text; got"),
        ({"limit": "ten"}, "evaluate: limit: expected a whole number or null; got 'ten'"),
        ({"local": True}, "evaluate: local: give engine='local'"),
        ({"dry_run": True}, "evaluate: dry_run: it is the command's"),
        ({"data": torch.zeros(9)}, "data: expected a name, a path, a URL or (x, y); got a Tensor"),
        ({"data": (1, 2, 3)}, "data: expected a name, a path, a URL or (x, y); got a tuple"),
        (
            {"data": "digits", "classifiers": torch.zeros(99)},
            f"got {' '.join(repr(torch.zeros(99)).split())[:100]}… (Tensor)",
        ),
        ({"data": "digits", "classifiers": ["c"], "attacks": [PGD]}, "attacks: expected text; got <class"),
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


def test_what_nobody_has_the_name_of_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown name 'median': known are the purifiers .*median_filter.*a_net"):
        raypurify.load("median")
    with pytest.raises(ValueError, match="images: expected one of digits, photographs; got 'faces'"):
        raypurify.train("faces", data="digits", classifier=None)  # type: ignore[arg-type]


class Means(nn.Module):
    """A classifier by the means of rows."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Linear(28, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean(dim=(1, 3)) * self.scale)


@dataclass(frozen=True)
class Half:
    """An attack of the user's."""

    by: float = 0.5
    norm = "linf"

    def __call__(self, victim: nn.Module, x: Tensor, y: Tensor, *, seeds: Any, target: Any = None) -> Attacked:
        return counted(x * (1 - self.by), steps=1, queries=0)


def means(scale: float = 1.0, seed: int = 0) -> Means:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Means(scale)


def test_paths_and_numpys_numbers_are_taken(tmp_path: Path) -> None:
    x, y = raypurify.load_images("digits", limit=4)
    summary = raypurify.evaluate(
        data=[x, y],
        classifiers=[means()],
        purifiers=["identity"],
        attacks=["fgsm"],
        epsilons=np.linspace(0.1, 0.2, 2),
        limit=np.int64(3),
        output=tmp_path / "run",
        engine="local",
    )
    assert (summary["n"].to_pylist(), summary["eps"].to_pylist()) == ([3, 3], [0.1, 0.2])


@dataclass(frozen=True)
class Unnamed:
    """An attack of a class that is not at the top of a module under its own name."""


Unnamed.__qualname__ = "Outer.Unnamed"


def test_attacks_that_were_made_are_taken_by_their_names(tmp_path: Path) -> None:
    attacks = [PGD(epsilon=8 / 255, steps=2), Half(by=0.25), "fgsm", torchattacks.build_named("FGSM")(eps=0.2)]
    given: dict[str, Any] = {"classifiers": [means()], "data": "digits", "limit": 4, "engine": "local"}
    summary = raypurify.evaluate(attacks=attacks, purifiers=["identity"], output=tmp_path / "run", **given)
    assert storage.read_json(str(tmp_path / "run/run.json"))["attempts"][0]["config"]["attacks"] == [
        "pgd,epsilon=0.03137254901960784,steps=2",
        f"{__name__}:Half,by=0.25",
        "fgsm",
        "torchattacks.FGSM,eps=0.2",
    ]
    assert len(summary) == 4
    with pytest.raises(ValueError, match=r"Outer\.Unnamed is defined in .*put it at the top of a module"):
        raypurify.evaluate(attacks=[Unnamed()], output=tmp_path / "other", **given)


def test_networks_and_images_of_ones_own(tmp_path: Path) -> None:
    x, y = raypurify.load_images("digits", limit=30)
    purifier = nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1))
    common: dict[str, Any] = {"attacks": ["fgsm,epsilon=0.1"], "output": f"{tmp_path}/run", "engine": "local"}
    network = means()
    summary = raypurify.evaluate(data=(x, y), classifiers=[network], purifiers=[purifier, "identity"], **common)
    assert summary["n"].to_pylist() == [30, 30]
    assert re.fullmatch(r"Means-[0-9a-f]{8}", summary["classifier"][0].as_py())
    right = raypurify.accuracy_under(network, x, y, attacks=["fgsm,epsilon=0.1"])
    assert summary["accuracy_clean"][0].as_py() == pytest.approx(right["clean"])
    assert summary["accuracy_adversarial"][0].as_py() == pytest.approx(right["fgsm,epsilon=0.1"])
    assert network.training
    pixels = (x * 255).round().to(torch.uint8)[:, 0].numpy()
    again = raypurify.evaluate(
        data=(pixels, y.numpy()), classifiers=[means()], purifiers=[purifier, "identity"], **common
    )
    assert again.equals(summary)
    assert len(storage.read_json(f"{tmp_path}/run/run.json")["attempts"]) == 1, (
        "the same images and networks: all is done"
    )
    for other in (means(scale=2.0), means(seed=1)):
        changed = raypurify.evaluate(data=(x, y), classifiers=[other], purifiers=["identity"], **common)
        assert changed["cell"][0].as_py() not in summary["cell"].to_pylist()
    trained = raypurify.train(
        data=(x, y),
        model="cru_net,width=2",
        classifier=network,
        epochs=1,
        batch=8,
        validation=0,
        attacks=["fgsm,epsilon=0.1"],
        output=f"{tmp_path}/purifier",
        engine="local",
    )
    assert trained(x).shape == x.shape


def test_workers_get_the_code_that_they_cannot_import() -> None:
    models.give_name(nn.Sequential(means(), nn.ReLU()))
    assert Means.__module__ in models.modules_given()
    assert not [name for name in models.modules_given() if name.startswith("torch")]


def of_no_file() -> nn.Module:
    names: dict[str, Any] = {"Module": nn.Module}
    exec("class Nowhere(Module): pass", names)
    return names["Nowhere"]()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"data": (torch.full((2, 1, 4, 4), 0.3), torch.zeros(2).long())}, "x: expected multiples of 1/255 in [0, 1]"),
        (
            {"data": (torch.zeros(2, 4), torch.zeros(2).long())},
            "x: expected images, (N, H, W) or (N, H, W, 1 or 3) uint8",
        ),
        ({"data": (torch.zeros(2, 1, 4, 4), torch.zeros(2))}, "y: expected (2,) whole numbers, got (2,) torch.float32"),
        (
            {"data": (torch.zeros(2, 1, 4, 4), torch.zeros(2).long()), "engine": "ray"},
            "data: images in memory",
        ),
        ({"classifiers": [of_no_file()]}, "Nowhere: its source cannot be read"),
    ],
)
def test_what_can_be_no_network_or_dataset_is_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        raypurify.evaluate(**{"engine": "local", **flags})
