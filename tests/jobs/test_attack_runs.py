"""Attacked datasets: made once, gone on with, and refused; in this process."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from attacked_digits import config as config
from attacked_digits import images_of
from grids import damaged as damaged

from raypurify import storage
from raypurify.data import open_source
from raypurify.evaluation.attacking import AttackPrecision
from raypurify.evaluation.generation import GenerationConfig
from raypurify.images import encode_png
from raypurify.jobs.attack import attack
from raypurify.jobs.resources import ActorPool
from raypurify.runs import StoppedError

ONE = ActorPool(actors=1, batch=100, local=True)


def test_what_was_cut_off_goes_on_and_what_is_done_stays(config: GenerationConfig, tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    attack(config, ONE, output)
    before = images_of(output)
    names = storage.list_files(f"{output}/images")
    assert len(names) == 16
    kept, lost = (Path(output, "images", name) for name in ("train-000000.parquet", "train-000001.parquet"))
    time = kept.stat().st_mtime_ns
    lost.unlink()
    Path(output, "_SUCCESS").unlink()
    attack(config, dataclasses.replace(ONE, batch=64), output)
    assert images_of(output).equals(before)
    assert storage.list_files(f"{output}/images") == names
    assert kept.stat().st_mtime_ns == time
    with pytest.raises(ValueError, match="this one has attack = 'fgsm"):
        attack(dataclasses.replace(config, attack="fgsm"), ONE, output)


def test_a_finished_run_that_lost_a_file_makes_it_again(config: GenerationConfig, tmp_path: Path) -> None:
    few, output = dataclasses.replace(config, limit=40), str(tmp_path / "run")
    figures = attack(few, ONE, output)
    before = images_of(output)
    next((tmp_path / "run/images").iterdir()).unlink()
    assert attack(few, ONE, output) == figures
    assert images_of(output).equals(before)
    assert len(storage.read_json(f"{output}/run.json")["attempts"]) == 2


def test_few_images_of_which_too_many_are_rejected_stop_the_run(
    config: GenerationConfig, damaged: str, tmp_path: Path
) -> None:
    bad, output = dataclasses.replace(config, input=damaged, split="test", limit=None), str(tmp_path / "run")
    with pytest.raises(StoppedError, match=r"2 of 10 images are rejected, more than --max-rejects=0\.1 allows"):
        attack(bad, ONE, output, max_rejects=0.1)
    assert not storage.is_success(output)
    assert attack(bad, ONE, output, max_rejects=0.2)["n"] == 8


@pytest.mark.parametrize("begun", ["float32", "bfloat16"])
def test_auto_goes_on_in_the_precision_in_which_a_run_was_begun(
    begun: AttackPrecision, config: GenerationConfig, tmp_path: Path
) -> None:
    few, output = dataclasses.replace(config, limit=20, attack="pgd,steps=2"), str(tmp_path / "run")
    attack(dataclasses.replace(few, attack_precision=begun), ONE, output)
    before = images_of(output)
    next((tmp_path / "run/images").iterdir()).unlink()
    (tmp_path / "run/_SUCCESS").unlink()
    attack(dataclasses.replace(few, attack_precision="auto"), ONE, output)
    assert images_of(output).equals(before)


def test_an_attack_through_the_purifier(config: GenerationConfig, small_purifier: str, tmp_path: Path) -> None:
    few = dataclasses.replace(config, limit=60, purifier=small_purifier)
    attack(few, ONE, str(tmp_path / "through"))
    attack(dataclasses.replace(few, purifier=None), ONE, str(tmp_path / "plain"))
    through, plain = images_of(str(tmp_path / "through")), images_of(str(tmp_path / "plain"))
    assert through["clean"].equals(plain["clean"])
    assert not through["image"].equals(plain["image"])


def test_png_files_of_long_ids_have_names_that_a_file_may_have(config: GenerationConfig, tmp_path: Path) -> None:
    ids = ["short/a.png", *(f"{'猫' * 80}/{'x' * 200}{number}.jpg" for number in range(2))]
    images = [encode_png(np.full((28, 28, 1), 90 * number, np.uint8)) for number in range(3)]
    pq.write_table(pa.table({"image": images, "label": [0, 1, 1], "id": ids}), tmp_path / "test.parquet")
    made = dataclasses.replace(config, input=str(tmp_path), limit=None, png=True, attack="none", split="test")
    attack(made, ONE, str(tmp_path / "run"))
    names = sorted(path.name for path in (tmp_path / "run" / "png" / "test" / "1").iterdir())
    assert len(names) == 2
    assert all(len(name) <= 255 and name.endswith(".png") for name in names)
    assert (tmp_path / "run" / "png" / "test" / "0" / "short%2Fa.png.png").read_bytes() == images[0]


def test_attacked_images_keep_the_names_of_their_classes(config: GenerationConfig, tmp_path: Path) -> None:
    for number in range(10):
        folder = tmp_path / "in" / f"digit {number}"
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(encode_png(np.full((28, 28, 1), 9 * number, np.uint8)))
    made = dataclasses.replace(config, input=str(tmp_path / "in"), limit=None, attack="none", split="train")
    attack(made, ONE, str(tmp_path / "run"))
    read = open_source(f"{tmp_path}/run/images", split="train")
    assert read.classes == tuple(f"digit {number}" for number in range(10))


def test_bad_input_is_refused_before_any_work(config: GenerationConfig, tmp_path: Path) -> None:
    for message, changes in (
        ("unknown name 'fgsmm'", {"attack": "fgsmm"}),
        ("no checkpoint", {"classifier": "nowhere/a_net"}),
        ("nowhere", {"input": str(tmp_path / "nowhere")}),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            attack(dataclasses.replace(config, **changes), ONE, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
