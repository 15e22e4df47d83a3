import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from raypurify import images
from raypurify.classifiers import a_net
from raypurify.evaluation.batch import Evaluator
from raypurify.evaluation.generation import AttackedImages, GenerationConfig, grid_of, rounding_effect, success
from raypurify.evaluation.grid import EvaluationConfig, build_grid
from raypurify.runs import schema
from raypurify.storage import checkpoints

SIZE = 12


@pytest.fixture
def config(tmp_path_factory: pytest.TempPathFactory) -> GenerationConfig:
    folder = str(tmp_path_factory.mktemp("a_net"))
    torch.manual_seed(0)
    network = {"kind": "classifier", "plugin": "a_net", "params": {"image_size": SIZE}}
    checkpoints.save(folder, network, a_net.build(image_size=SIZE).state_dict())
    return GenerationConfig(input="digits", attack="fgsm,epsilon=0.1", classifier=folder)


def attacked_images(config: GenerationConfig) -> AttackedImages:
    return AttackedImages(grid_of(config, "digits", 5, 250), "cpu")


def test_a_batch_becomes_rows(config: GenerationConfig) -> None:
    attacked_by = attacked_images(config)
    pixels = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 1), dtype=np.uint8)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    table = attacked_by(x, torch.arange(5), list("abcde"))
    assert table.schema == schema.IMAGES
    for row, clean in zip(table.to_pylist(), pixels, strict=True):
        np.testing.assert_array_equal(images.decode(row["clean"]), clean)
        attacked = images.decode(row["image"])
        assert np.abs(attacked.astype(int) - clean).max() in (25, 26)
        rounded = torch.from_numpy(attacked).permute(2, 0, 1)[None].float() / 255
        assert attacked_by.evaluator.classifiers[0](rounded).argmax().item() == row["pred_rounded"]
        assert row["linf"] == pytest.approx(0.1, abs=1e-6)


def test_an_attack_makes_the_same_images_however_it_is_written(config: GenerationConfig) -> None:
    x = torch.rand(5, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    written = ("pgd,epsilon=0.3", "pgd,steps=40,epsilon=0.3", "pgd")
    configs = [dataclasses.replace(config, attack=attack) for attack in written]
    first, *others = (attacked_images(c)(x, torch.arange(5), list("abcde")) for c in configs)
    assert all(first.equals(other) for other in others)


@pytest.mark.parametrize("purifier", [None, "gaussian_noise,sigma=0.2", "threshold"])
def test_the_images_are_those_that_an_evaluation_scores(config: GenerationConfig, purifier: str | None) -> None:
    """Also through a purifier that draws at random: an evaluation and a generation make the same draws."""
    x, y, ids = torch.rand(5, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)), torch.arange(5), list("abcde")
    config = dataclasses.replace(config, attack="pgd,epsilon=0.3,steps=3", purifier=purifier, eot=3, seed=1)
    table = attacked_images(config)(x, y, ids)
    evaluation = EvaluationConfig(
        data=config.input,
        classifiers=(config.classifier,),
        purifiers=(purifier or "identity",),
        attacks=(config.attack,),
        settings=("white-box",) if purifier is None else ("adaptive",),
        eot=3,
        masking_images=0,
        seed=1,
    )
    (scored,) = Evaluator(build_grid(evaluation, "digits", 5), "cpu").evaluate(x, y, ids)
    written = [images.decode(data) for data in table["image"].to_pylist()]
    assert np.array_equal(written, images.to_uint8_nhwc(scored.x_adv))
    assert (
        table["pred_adversarial"].to_pylist()
        == scored.scores["pred_purified" if purifier else "pred_adversarial"].to_pylist()
    )


def test_the_effect_of_rounding_is_over_images_right_at_first() -> None:
    table = pa.table(
        {
            "label": [0, 0, 0, 0],
            "pred_clean": [0, 0, 0, 1],
            "pred_adversarial": [1, 1, 0, 1],
            "pred_rounded": [1, 0, 0, 1],
            "linf": pa.array([0.1, 0.2, 0.3, 0.0], pa.float32()),
            "l2": pa.array([1.0, 2.0, 3.0, 0.0], pa.float32()),
        }
    )
    figures = rounding_effect(table)
    assert figures["success_adversarial"] == pytest.approx(2 / 3)
    assert figures["success_rounded"] == pytest.approx(1 / 3)
    assert (figures["linf_max"], figures["l2_median"]) == (pytest.approx(0.3), 2.0)  # of 1, 2 and a failure
    assert rounding_effect(table.slice(2))["l2_median"] is None, "the attack succeeded nowhere"
    assert success(table.slice(3), "rounded") is None
