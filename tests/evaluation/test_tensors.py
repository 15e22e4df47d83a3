"""Plain tensors: images, and accuracy under attacks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raypurify import accuracy_under, attacks, load_images, models
from raypurify.attacks import Composite
from raypurify.attacks.fgsm import FGSM
from raypurify.attacks.pgd import PGD
from raypurify.data import DataError
from raypurify.images import encode_png
from raypurify.purifiers.median_filter import build as median_filter


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(7, 1, 28, 28, generator=generator), torch.arange(7)


def test_no_batch_changes_what_comes_of_an_image(small_classifier: str, images: Any) -> None:
    model, (x, _) = models.load("classifier", small_classifier).build().requires_grad_(True).train(), images
    y = model.eval()(x).argmax(dim=1)
    model.train()
    asked = ["pgd,epsilon=0.1,steps=2", FGSM(epsilon=0.2)]
    found = accuracy_under(model, x, y, attacks=asked, seed=3)
    assert found["clean"] == 1
    assert list(found) == ["clean", "pgd,epsilon=0.1,steps=2", str(asked[1])]
    assert found == accuracy_under(model, x, y, attacks=asked, seed=3, batch=2)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    attacked = attacks.run(PGD(epsilon=0.1, steps=2), model, x, y, seed=3)
    assert (attacked.x_adv - x).abs().max() <= 0.1 + 1e-6
    model.eval()
    assert found["pgd,epsilon=0.1,steps=2"] == (model(attacked.x_adv).argmax(dim=1) == y).float().mean()
    last = attacks.run(PGD(epsilon=0.1, steps=2), model, x[5:], y[5:], seed=3, first=5)
    assert torch.allclose(last.x_adv, attacked.x_adv[5:])
    other = attacks.run(PGD(epsilon=0.1, steps=2), model, x, y, seed=4)
    assert not torch.equal(other.x_adv, attacked.x_adv)


def test_the_images_of_a_dataset(tmp_path: Path) -> None:
    x, y = load_images("digits", limit=20)
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((20, 1, 28, 28), torch.float32, (20,), torch.int64)
    assert 0 <= x.min() < 0.1 < 0.9 < x.max() <= 1
    for index in range(12):
        path = tmp_path / "test" / str(index % 2) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(np.zeros((8, 8 + index // 11, 1), np.uint8)))
    with pytest.raises(DataError, match=r"expected images of one shape, got \[\(8, 8, 1\), \(8, 9, 1\)\]"):
        load_images(str(tmp_path))
    assert load_images(str(tmp_path), resize=6, crop=4)[0].shape == (12, 1, 4, 4)
    path.write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(DataError, match=r"got \[\(4, 4, 1\), \(4, 4, 3\)\]; make them all grey, or all RGB"):
        load_images(str(tmp_path), resize=6, crop=4)
    for width in range(9, 14):
        (tmp_path / "test" / "1" / f"{width}.png").write_bytes(encode_png(np.zeros((8, width, 1), np.uint8)))
    with pytest.raises(DataError, match=r"\(8, 10, 1\), \.\.\. \(6 in all\)\]"):
        load_images(str(tmp_path))
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"11\.png: "):
        load_images(str(tmp_path))


def test_a_defense_is_attacked_as_a_whole(small_classifier: str, images: Any) -> None:
    classifier = models.load("classifier", small_classifier).build()
    model = Composite(classifier, median_filter(), surrogate=torch.nn.Identity())
    x, _ = images
    y = model(x).argmax(dim=1)
    assert accuracy_under(model, x, y, attacks=["fgsm,epsilon=0.3"])["clean"] == 1


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(2, 28, 28), torch.zeros(2).long(), r"x: expected \(N, C, H, W\) float32, got \(2, 28, 28\)"),
        (torch.full((2, 1, 8, 8), 2.0), torch.zeros(2).long(), r"x: expected pixels in \[0, 1\], got 2 to 2"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2), r"y: expected \(2,\) int64, got \(2,\) torch.float32"),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0).long(), "x: expected at least one image, got none"),
        (np.zeros((2, 1, 8, 8), np.float32), torch.zeros(2).long(), r"x: expected a tensor, got a numpy.ndarray; give"),
        (torch.zeros(2, 1, 8, 8), [0, 1], r"y: expected a tensor, got a builtins.list; give torch.as_tensor\(y\)"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([0, -1]), "y: expected classes from 0 on, got -1"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([0, 64]), "y: the model knows 64 classes, from 0 on; got 64"),
    ],
)
def test_tensors_that_are_no_images_are_refused(x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accuracy_under(torch.nn.Flatten(), x, y, attacks=[])


@pytest.mark.parametrize(
    ("model", "got"),
    [
        (torch.nn.Identity(), r"the shape \(1, 1, 8, 8\)"),
        (torch.nn.Flatten(0), r"the shape \(64,\)"),
        (torch.nn.AdaptiveMaxPool2d(1, return_indices=True), "a tuple"),
        (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1)), r"the shape \(1, 1\)"),
    ],
)
def test_what_is_no_classifier_is_refused(model: Any, got: str) -> None:
    x, y = torch.zeros(2, 1, 8, 8), torch.zeros(2).long()
    message = rf"model: expected logits \(N, K\) of at least two classes for 1 image\(s\), got {got}"
    with pytest.raises(ValueError, match=message):
        accuracy_under(model, x, y, attacks=[])
    with pytest.raises(ValueError, match=message):
        attacks.run(FGSM(), model, x, y)


class Opaque(torch.nn.Flatten):
    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_a_model_without_a_gradient_is_told(images: Any) -> None:
    x, _ = images
    y = Opaque()(x).argmax(dim=1)
    for attack in ("fgsm", "pgd", "apgd", "fab", "deepfool", "carlini_wagner", "stadv"):
        with pytest.raises(ValueError, match="the victim's logits have no gradient"):
            accuracy_under(Opaque(), x, y, attacks=[attack])


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model: expected a torch\.nn\.Module, got 'weights/a_net'"):
        accuracy_under("weights/a_net", torch.zeros(2, 1, 8, 8), torch.zeros(2).long(), attacks=[])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.tensor([1]), r"target: expected \(2,\) int64, got \(1,\) torch.int64"),
        (torch.tensor([1, 2], dtype=torch.int32), r"target: expected \(2,\) int64, got \(2,\) torch.int32"),
        (torch.tensor([1, 64]), "the model knows 64 classes, from 0 on; got 64"),
    ],
)
def test_classes_to_go_towards_are_checked(target: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attacks.run(FGSM(), torch.nn.Flatten(), torch.zeros(2, 1, 8, 8), torch.zeros(2).long(), target=target)


@pytest.mark.parametrize(
    ("asked", "batch", "message"),
    [
        ("fgsm", 2, r"attacks: expected a list, got the text 'fgsm'; give \['fgsm'\]"),
        ([FGSM], 2, r"attack: expected an attack such as PGD\(epsilon=8 / 255\), got <class"),
        (["fgsm"], 0, "batch must be at least 1; got 0"),
        (["fgsm"], -1, "batch must be at least 1; got -1"),
    ],
)
def test_what_is_no_list_of_attacks_or_no_batch_is_refused(asked: Any, batch: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accuracy_under(torch.nn.Flatten(), torch.zeros(2, 1, 8, 8), torch.zeros(2).long(), asked, batch=batch)
