"""Classifiers of other libraries, with random weights or with those that a package carries: nothing is downloaded."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raypurify import models, plugins
from raypurify.classifiers.timm import names_of
from raypurify.classifiers.transformers import view_of
from raypurify.data import View, open_source, read_rows
from raypurify.evaluation import normalisation, preflight
from raypurify.evaluation.tensors import write_images

MEAN, STD = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)


def photographs(count: int = 40, side: int = 40) -> np.ndarray:
    """(N, side, side, 3) uint8, smooth and pale: what is not normalised is hard to tell apart."""
    coarse = np.random.default_rng(0).integers(96, 160, (count, 4, 4, 3), np.uint8)
    return coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2)


@pytest.fixture(scope="session", autouse=True)
def torchvision() -> torch.library.Library:
    """Let a torchvision be imported that was built for another torch: the libraries call none of the operators that its
    import looks for."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library  # the operators are there as long as it is


@pytest.fixture(scope="session")
def timm() -> Any:
    return pytest.importorskip("timm")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small network of transformers, with random weights, and of its image processor."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hub") / "resnet"
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=7)
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    recipe = {"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    recipe |= {"image_mean": MEAN, "image_std": STD, "image_processor_type": "ConvNextImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(recipe))
    return str(folder)


def test_a_network_of_timm_normalises_by_its_data_configuration_and_knows_its_view(timm: Any) -> None:
    network = models.untrained("classifier", plugins.Spec.parse("timm,model=resnet18,classes=7")).eval()
    told = timm.data.resolve_model_data_config(network.network)
    x = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(told[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(network(x), network.network((x - mean) / std))
    assert network(x).shape == (2, 7)
    assert network.view == {"resize": int(224 / told["crop_pct"]), "crop": 224}


def test_a_network_of_timm_is_shaped_by_its_data_to_be_trained(timm: Any) -> None:
    spec = models.shaped_for("classifier", "timm,model=resnet18", (32, 32, 1), 5)
    assert models.untrained("classifier", spec).eval()(torch.rand(2, 1, 32, 32)).shape == (2, 5)


def test_timm_without_weights_or_with_an_unknown_name_is_refused(timm: Any) -> None:
    with pytest.raises(ValueError, match="classifier 'timm' has to be trained first"):
        models.load("classifier", "timm,model=resnet18")
    with pytest.raises(ValueError, match=r"it has no model 'resnet81'.*such as \['.*resnet"):
        models.load("classifier", "timm,model=resnet81")


def test_timm_with_a_torchvision_that_does_not_load_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        """Fails as torchvision does beside another build of torch."""

        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "timm":
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ValueError, match=r"nms does not exist\. Its torchvision was built for another torch"):
        models.load("classifier", "timm,model=resnet18")


def test_a_network_of_transformers_is_its_weights_its_normalisation_and_its_view(resnet: str) -> None:
    from transformers import AutoModelForImageClassification

    model = models.load("classifier", f"transformers,model={resnet}")
    x = torch.rand(3, 3, 32, 32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        expected = AutoModelForImageClassification.from_pretrained(resnet).eval()((x - mean) / std).logits
    torch.testing.assert_close(model.build()(x), expected)
    assert model.config == {"view": {"resize": 36, "crop": 32}}
    # A worker has it by value: its folder may be on the driver's machine alone.
    assert model.network is not None
    assert models.load("classifier", f"transformers,model={resnet}").identity == model.identity


def test_classes_have_the_names_that_a_library_knows(resnet: str, tmp_path: Path) -> None:
    config = Path(shutil.copytree(resnet, tmp_path / "named")) / "config.json"
    settings = json.loads(config.read_text())
    count = len(settings.get("id2label", range(2)))
    config.write_text(json.dumps({**settings, "id2label": {str(number): f"kind {number}" for number in range(count)}}))
    known = models.load("classifier", f"transformers,model={config.parent}").config["class_names"]
    assert known == [f"kind {number}" for number in range(count)]
    assert names_of(10, ["cat"] * 10) == ["cat"] * 10
    assert names_of(10, None) is None
    for told in (None, ["n01440764"] * 1000):
        assert names_of(1000, told)[0].startswith("tench, ")  # type: ignore[index]
    assert names_of(1000, ["cat"] * 1000) == ["cat"] * 1000


def test_a_network_that_the_hub_does_not_have_is_told(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=f"transformers: {tmp_path}"):
        models.load("classifier", f"transformers,model={tmp_path}")


@pytest.mark.parametrize(
    ("recipe", "view"),
    [
        ({"size": {"height": 224, "width": 224}}, {"resize": 224, "crop": 224}),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, {"resize": 256, "crop": 224}),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, {"resize": 384, "crop": 384}),
        ({"size": 256, "do_center_crop": True, "crop_size": 224}, {"resize": 256, "crop": 224}),
        ({"do_resize": False, "size": 224}, None),
    ],
)
def test_views_of_image_processors(recipe: dict[str, Any], view: dict[str, int] | None) -> None:
    assert view_of(recipe) == view


@pytest.mark.parametrize(("number", "view"), [(0, {"resize": 256, "crop": 224}), (1, {"resize": 272, "crop": 240})])
def test_efficientnet_lite_has_its_published_weights(number: int, view: dict[str, int]) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    model = models.load("classifier", f"efficientnet_lite{number}")
    assert model.config["view"] == view
    assert len(model.config["class_names"]) == 1000
    assert model.config["class_names"][281] == "tabby, tabby cat, n02123045"
    with torch.no_grad():
        logits = model.build()(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (1, 1000)
    with pytest.raises(ValueError, match="has to be trained first"):
        models.load("classifier", f"efficientnet_lite{number},pretrained=false")


class Raw(nn.Module):
    """Knows images by the colours of their pixels, normalised once: the nearest of some prototypes."""

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("prototypes", self.features(images))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(3 * torch.nn.functional.adaptive_avg_pool2d(x, 4)).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -torch.cdist(self.features(x), self.prototypes)


IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def normalised(x: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    return (x - mean) / std


def raw() -> nn.Module:
    """A network without normalisation, right on all of :func:`photographs` once these are normalised."""
    x = torch.from_numpy(photographs()).permute(0, 3, 1, 2).float() / 255
    return Raw(normalised(x))


@pytest.fixture
def colours(tmp_path: Path) -> str:
    write_images(str(tmp_path / "colours.parquet"), photographs(), np.arange(40))
    return str(tmp_path / "colours.parquet")


def test_mean_and_std_beside_a_dotted_path_normalise(
    colours: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    means = "mean=[0.485,0.456,0.406],std=[0.229,0.224,0.225]"
    plain, given = (models.load("classifier", f"test_libraries:raw{flags}") for flags in ("", f",{means}"))
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(given.build()(x), plain.build()(normalised(x)))
    assert given.identity != plain.identity
    with pytest.raises(ValueError, match=r"std: expected numbers, one a channel.*got None"):
        models.load("classifier", "test_libraries:raw,mean=[0.5,0.5,0.5]")
    with pytest.raises(ValueError, match="one a channel"):
        models.load("classifier", "test_libraries:raw,mean=[0.5],std=[0]")


@pytest.mark.parametrize(
    ("flags", "warned"),
    [
        (",mean=[0.485,0.456,0.406],std=[0.229,0.224,0.225]", None),
        ("", r"right on \d+% of 32 clean images, and on 100% normalised by ImageNet's mean and std: it seems not to"),
        (":twice", r"and on 100% once ImageNet's mean and std are undone: it seems to normalise twice"),
        (":wide", r"and on 100% with pixels in \[0, 255\].* Give mean=\[0,0,0\],std=\[1/255,1/255,1/255\]"),
        (":still", r"its logits hardly move from image to image"),
        (":guessing", r"as one who guesses"),
    ],
)
def test_a_classifier_that_normalises_otherwise_than_it_was_trained_to_is_told(
    flags: str, warned: str | None, colours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    text = f"test_libraries{flags}" if flags.startswith(":") else f"test_libraries:raw{flags}"
    model = models.load("classifier", text)
    source = open_source(colours, split="train" if open_source(colours, split="test").rows < 20 else "test")
    _, _, warnings = preflight.checked(colours, source, [model], job="an evaluation", done="evaluated")
    found = [line for line in warnings if "clean images" in line]
    if warned is None:
        assert found == []
    else:
        (line,) = found
        assert line.startswith(f"{model.name} is ")
        assert re.search(warned, line), line


def test_attacked_images_and_a_few_tell_nothing_of_a_normalisation(
    colours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    model = models.load("classifier", "test_libraries:twice")
    source = open_source(colours, split="train", limit=20)
    assert normalisation.warnings([model], source)
    assert not normalisation.warnings([model], open_source(colours, split="train", limit=7))
    assert not normalisation.warnings([model], dataclasses.replace(source, is_attacked=True))


def twice() -> nn.Module:
    from raypurify.classifiers import Normalized

    return Normalized(Normalized(raw(), *IMAGENET), *IMAGENET)


def wide() -> nn.Module:
    from raypurify.classifiers import Normalized

    mean, std = ([255 * value for value in values] for values in IMAGENET)
    return Normalized(raw(), mean, std)


def still() -> nn.Module:
    network = raw()
    network.prototypes = torch.arange(float(network.prototypes.numel())).view_as(network.prototypes)
    return network


def guessing() -> nn.Module:
    network = raw()
    network.prototypes = network.prototypes.roll(1, dims=0)
    return network


def test_images_are_shown_as_a_classifier_was_trained_where_no_flag_says_otherwise(resnet: str, tmp_path: Path) -> None:
    model = models.load("classifier", f"transformers,model={resnet}")
    write_images(str(tmp_path / "large.parquet"), photographs(side=48), np.arange(40) % 7)
    write_images(str(tmp_path / "cut.parquet"), photographs(side=32), np.arange(40) % 7)
    large, cut = (open_source(str(tmp_path / f"{name}.parquet"), split="test") for name in ("large", "cut"))
    shown = preflight.as_trained(large, View(), [model])
    assert (shown.name, shown.view) == ("large.parquet (resize 36, crop 32)", View(resize=36, crop=32))
    rows = read_rows(shown.shards[0], 0, 1)
    assert rows.images[0].shape == (32, 32, 3)
    assert preflight.as_trained(cut, View(), [model]) is cut  # stored as they are shown: attacked ones, say
    assert preflight.as_trained(large, View(as_stored=True), [model]) is large
    other = models.load("classifier", f"transformers,model={resnet},classes=7")
    assert preflight.as_trained(large, View(), [model, other]).view == shown.view
    del other.config["view"]
    assert preflight.as_trained(large, View(), [model, other]) is large
