"""Every classifier, one table: a new file in raypurify/classifiers is tested on arrival."""

import importlib

import pytest
import torch
from torch import nn

from raypurify import plugins

LIBRARIES = ("efficientnet_lite0", "efficientnet_lite1", "timm", "transformers")
"""Networks that other projects define: test_libraries.py."""
NAMES = [name for name in plugins.known("raypurify.classifiers") if name not in LIBRARIES]


def build(name: str, shape: tuple[int, int, int]) -> nn.Module:
    module = importlib.import_module(f"raypurify.classifiers.{name}")
    return module.build(**module.params_for(shape, 7))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)])
def test_images_to_raw_logits(name: str, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    height, width, channels = shape
    x = torch.rand(3, channels, height, width, requires_grad=True)
    logits = build(name, shape).eval()(x)
    assert logits.shape == (3, 7)
    assert logits.min() < 0  # a ReLU after the last layer would zero these
    logits.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_normalises_inside(name: str) -> None:
    module = importlib.import_module(f"raypurify.classifiers.{name}")
    params = module.params_for((32, 32, 3), 10)
    torch.manual_seed(0)
    network = module.build(**params).eval()
    plain = module.build(**{**params, "mean": (0.0,) * 3, "std": (1.0,) * 3}).eval()
    plain.load_state_dict(network.state_dict())
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(params[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(network(x), plain((x - mean) / std))


@pytest.mark.parametrize("name", NAMES)
def test_refuses_pixels_statistics_that_do_not_fit(name: str) -> None:
    module = importlib.import_module(f"raypurify.classifiers.{name}")
    with pytest.raises(ValueError, match="one a channel"):
        module.build(**{**module.params_for((32, 32, 3), 10), "mean": (0.5,)})


def layers(name: str) -> list[str]:
    kinds = (nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.Dropout)
    network = importlib.import_module(f"raypurify.classifiers.{name}").build()
    found = [module for module in network.modules() if isinstance(module, kinds)]
    return [
        f"conv{m.out_channels} {m.kernel_size[0]}x{m.kernel_size[1]} s{m.stride[0]}"
        if isinstance(m, nn.Conv2d)
        else f"fc{m.out_features}"
        if isinstance(m, nn.Linear)
        else type(m).__name__
        for m in found
    ]


def test_a_net_and_b_net_are_the_papers_table_1() -> None:
    conv = "conv64 3x3 s1"
    assert layers("a_net") == ["conv64 5x5 s1", "conv64 3x3 s2", "Dropout", "fc10"]
    assert layers("b_net") == [
        *(conv, conv, "MaxPool2d", conv, conv, "MaxPool2d"),
        *("fc200", "Dropout", "fc200", "Dropout", "fc10"),
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model_a", ["conv64 5x5 s1", "conv64 5x5 s2", "Dropout", "fc128", "Dropout", "fc10"]),
        ("model_b", ["Dropout", "conv64 8x8 s2", "conv128 6x6 s2", "conv128 5x5 s1", "Dropout", "fc10"]),
        ("model_c", ["conv128 3x3 s1", "conv64 5x5 s2", "Dropout", "fc128", "Dropout", "fc10"]),
        ("model_d", ["fc200", "Dropout", "fc200", "Dropout", "fc10"]),
    ],
)
def test_models_a_to_d_are_defense_gans(name: str, expected: list[str]) -> None:
    assert layers(name) == expected


@pytest.mark.parametrize(("name", "least"), [("model_a", 5), ("model_b", 28), ("model_c", 5)])
def test_images_that_are_too_small_are_refused(name: str, least: int) -> None:
    module = importlib.import_module(f"raypurify.classifiers.{name}")
    assert module.build(image_size=least).eval()(torch.rand(1, 1, least, least)).shape == (1, 10)
    with pytest.raises(ValueError, match=f"image_size must be at least {least}; got {least - 1}"):
        module.build(image_size=least - 1)
