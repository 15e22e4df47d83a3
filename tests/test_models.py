import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raypurify import models, plugins
from raypurify.classifiers import a_net
from raypurify.evaluation.grid import EvaluationConfig, build_grid
from raypurify.purifiers import cru_net
from raypurify.storage import checkpoints


def save(folder: Path, kind: str, plugin: str, network: nn.Module, params: dict[str, Any], **extra: Any) -> str:
    config = {"kind": kind, "plugin": plugin, "params": params, **extra}
    checkpoints.save(str(folder), config, network.state_dict())
    return str(folder)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    torch.manual_seed(0)
    network = a_net.build(image_size=8)
    return save(tmp_path / "small", "classifier", "a_net", network, {"image_size": 8, "mean": [0.1], "std": [0.3]})


def test_a_checkpoint_builds_the_same_network_frozen_in_eval(checkpoint: str) -> None:
    model = models.load("classifier", checkpoint)
    network = model.build()
    assert model.name == "small"
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(network.head[2].weight, model.state["head.2.weight"])


def test_a_runs_model_is_called_as_the_run(tmp_path: Path) -> None:
    params = {"image_size": 8, "mean": [0.1], "std": [0.3]}
    url = save(tmp_path / "my_run" / "model", "classifier", "a_net", a_net.build(image_size=8), params)
    assert models.load("classifier", url).name == "my_run"


def test_identity_follows_the_weights_and_the_parameters(checkpoint: str, tmp_path: Path) -> None:
    first = models.load("classifier", checkpoint)
    torch.manual_seed(1)
    params = {"image_size": 8, "mean": [0.1], "std": [0.3]}
    other = save(tmp_path / "other", "classifier", "a_net", a_net.build(image_size=8), params)
    assert models.load("classifier", checkpoint).sha256 == first.sha256
    assert models.load("classifier", other).sha256 != first.sha256


def test_a_trivial_purifier_needs_no_weights() -> None:
    model = models.load("purifier", "rounding,bits=3")
    assert model.name == "rounding,bits=3"
    assert model.trained_for == ()
    assert model.build()(torch.full((1, 1, 2, 2), 0.4)).unique().tolist() == pytest.approx([3 / 7])


def test_weights_that_the_package_carries_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    carried = models.load("purifier", "weights/photos/cru_net")
    assert models.load("purifier", "./weights/photos/cru_net").identity == carried.identity
    with pytest.raises(FileNotFoundError, match="weights/photos/none"):
        models.load("purifier", "./weights/photos/none")


def test_a_built_in_network_without_weights_is_refused() -> None:
    for kind, name in (("classifier", "a_net"), ("purifier", "cru_net")):
        with pytest.raises(ValueError, match="has to be trained first"):
            models.load(kind, name)


def test_a_folder_that_is_called_like_no_plugin_is_given_with_a_slash(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(checkpoint).parent)
    with pytest.raises(ValueError, match=r"'small' .* The checkpoint in this folder is given as \./small$"):
        models.load("classifier", "small")
    with pytest.raises(ValueError, match=r"my_package\.module:callable$"):
        models.load("classifier", "other")
    with pytest.raises(FileNotFoundError, match=r"expected config\.json and model\.safetensors in it"):
        models.load("classifier", "./small/config.json")


def test_the_wrong_kind_is_refused(checkpoint: str) -> None:
    with pytest.raises(ValueError, match="expected a purifier, but this checkpoint holds a classifier"):
        models.load("purifier", checkpoint)


def test_weights_that_do_not_fit_name_the_model(checkpoint: str) -> None:
    model = models.load("classifier", checkpoint)
    wrong = dataclasses.replace(model, spec=plugins.Spec(name="a_net", params={"image_size": 9}))
    with pytest.raises(ValueError, match="small: the weights do not fit"):
        wrong.build()


def test_code_of_a_checkpoint_runs_only_when_the_user_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_models.py").write_text(
        "import torch\ndef make(width=1):\n    return torch.nn.Conv2d(1, width, 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    url = save(tmp_path / "own", "purifier", "own_models:make", nn.Conv2d(1, 2, 1), {"width": 2})
    with pytest.raises(ValueError, match="to run that code, say so"):
        models.load("purifier", url)
    assert "own_models" not in sys.modules
    assert models.load("purifier", f"{url},plugin=own_models:make").build().out_channels == 2


NETS = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(144, 10)
        self.register_buffer("seen", torch.zeros(0))
    def forward(self, x):
        return {sign}self.head(x.flatten(1))
"""
MAKER = """
import torch
from {package}.nets import Net
def make():
    torch.manual_seed({seed})
    return Net()
def differs():
    torch.seed()
    return Net()
"""


def test_a_network_by_dotted_path_is_identified_by_its_weights_and_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = f"own_{tmp_path.name}"
    (tmp_path / package).mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it would outlive a change within the same second

    def loaded(sign: str = "", seed: int = 0) -> tuple[models.Model, str]:
        for name in [name for name in sys.modules if name.startswith(package)]:
            del sys.modules[name]
        Path(tmp_path, package, "nets.py").write_text(NETS.format(sign=sign))
        Path(tmp_path, package, "maker.py").write_text(MAKER.format(package=package, seed=seed))
        importlib.invalidate_caches()
        own = models.load("classifier", f"{package}.maker:make")
        config = EvaluationConfig(data="digits", classifiers=(f"{package}.maker:make",), attacks=("none",))
        (cell,) = build_grid(config, "digits", 1).cells
        return own, cell.hash

    first, cell = loaded()
    assert loaded() == (first, cell)
    (other_code, other_cell), (other_weights, third_cell) = loaded(sign="-"), loaded(seed=1)
    assert len({cell, other_cell, third_cell}) == 3
    assert other_code.sha256 == first.sha256, "a purifier that was trained for it still is"
    assert other_code.identity != first.identity
    assert other_weights.sha256 != first.sha256
    with pytest.raises(ValueError, match="has other weights each time"):
        models.load("classifier", f"{package}.maker:differs")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            "class_names = {0: 'cat', 1: 'dog'}",
            r"own_net:Own: class_names: expected a list of a text for each class; got",
        ),
        ("class_names = 'cat dog'", "own_net:Own: class_names: expected a list"),
        ("view = (64, 48)", r"own_net:Own: view: expected {.*} or one of the two; got \(64, 48\)"),
        ("view = {'side': 64}", "own_net:Own: view: expected"),
    ],
)
def test_what_a_network_says_of_itself_in_another_form_is_told(
    told: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_net", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    text = f"import torch\nclass Own(torch.nn.Module):\n    {told}\n    def forward(self, x):\n        return x\n"
    (tmp_path / "own_net.py").write_text(text)
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match=message):
        models.load("classifier", "own_net:Own")


def test_a_checkpoint_of_code_of_ones_own_is_identified_by_the_code_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = tmp_path / "own_code.py"
    code.write_text("import torch\ndef make():\n    return torch.nn.Conv2d(1, 1, 1)\n")
    url = save(tmp_path / "own", "purifier", "own_code:make", nn.Conv2d(1, 1, 1), {})
    first = models.load("purifier", f"{url},plugin=own_code:make")
    code.write_text(code.read_text() + "# changed\n")
    changed = models.load("purifier", f"{url},plugin=own_code:make")
    assert changed.sha256 == first.sha256
    assert changed.identity != first.identity


def test_a_purifier_knows_whom_it_was_trained_for(tmp_path: Path) -> None:
    victim = {"classifier": "small", "sha256": "abc"}
    url = save(tmp_path / "p", "purifier", "cru_net", cru_net.build(width=2), {"width": 2}, trained_for=victim)
    assert models.load("purifier", url).trained_for == ("abc",)


def test_a_network_is_shaped_to_its_data() -> None:
    spec = models.shaped_for("classifier", "a_net", (32, 32, 3), 100)
    assert spec.params["image_size"] == 32
    assert spec.params["channels"] == 3
    assert spec.params["classes"] == 100
    assert models.shaped_for("purifier", "cru_net,width=8", (32, 32, 3), 100).params == {"channels": 3, "width": 8}
    with pytest.raises(ValueError, match="square"):
        models.shaped_for("classifier", "a_net", (32, 40, 3), 10)
