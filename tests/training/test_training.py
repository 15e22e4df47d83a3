import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from raypurify.data import DataError
from raypurify.images import encode_png
from raypurify.models import Precision, autocast, fast_precision
from raypurify.purifiers import cru_net
from raypurify.training.batches import Batch, augment, batch_of
from raypurify.training.config import TrainingConfig
from raypurify.training.objectives import (
    ClassifierObjective,
    DivergedError,
    Objective,
    Optimization,
    PurifierObjective,
    Setup,
    build_attacks,
    build_pairs,
    check_finite,
    train_step,
    validate,
)

CONFIG = TrainingConfig(data="digits", model="a_net", precision="float32")


def small_classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


def classifier_objective(network: nn.Module, total_steps: int = 6, **changes: object) -> ClassifierObjective:
    config = dataclasses.replace(CONFIG, **changes)
    return ClassifierObjective(Setup(config=config, network=network, total_steps=total_steps, device="cpu"))


def batch(n: int = 12) -> Batch:
    generator = np.random.default_rng(0)
    images = np.tile(generator.integers(60, 200, (n, 1, 1, 1), dtype=np.uint8), (1, 8, 8, 1))
    return batch_of(images, generator.integers(0, 4, n), list(range(n)), "cpu")


def test_a_batch_is_nchw_in_0_1() -> None:
    images = np.zeros((2, 3, 4, 1), np.uint8)
    images[1, 2, 3, 0] = 255
    made = batch_of(images, np.array([1, 2]), [5, 6], "cpu")
    assert made.x.shape == (2, 1, 3, 4)
    assert made.x[1, 0, 2, 3] == 1
    assert made.x.sum() == 1
    assert made.y.tolist() == [1, 2]


@pytest.mark.parametrize("augmentation", ["affine", "flip_crop"])
def test_augmentation_is_of_the_image_and_its_seed(augmentation: str) -> None:
    x = torch.rand(6, 3, 16, 16)
    seeds = list(range(6))
    changed = augment(x, seeds, augmentation)
    assert changed.shape == x.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert not torch.equal(changed, x)
    alone = torch.cat([augment(x[i : i + 1], [seeds[i]], augmentation) for i in range(6)])
    torch.testing.assert_close(alone, changed)


def test_flip_crop_shifts_and_mirrors() -> None:
    x = torch.arange(16.0).view(1, 1, 1, 16).expand(200, 1, 16, 16) / 16
    rows = augment(x, range(200), "flip_crop")[:, 0, 8]
    mirrored = rows[:, 8] < rows[:, 7]
    assert 0.3 < mirrored.float().mean() < 0.7
    assert set((rows[~mirrored][:, 8] * 16 - 8).int().tolist()) == {-2, -1, 0, 1, 2}


def test_the_rate_warms_up_and_ends_near_zero() -> None:
    optimization = Optimization(parameters=list(small_classifier().parameters()), config=CONFIG, total_steps=100)
    rates = [optimization.rate(step) for step in range(100)]
    assert max(rates) == pytest.approx(CONFIG.rate)
    assert rates[0] == pytest.approx(CONFIG.rate / 10)
    assert np.argmax(rates) == 9
    assert rates[-1] < CONFIG.rate / 100
    later = dataclasses.replace(optimization, first_step=100, total_steps=200)
    assert [later.rate(step) for step in range(100, 200)] == rates


def test_resuming_repeats_the_undisturbed_run() -> None:
    whole = classifier_objective(small_classifier())
    for step in range(6):
        train_step(whole, batch(), step)

    first = classifier_objective(small_classifier())
    for step in range(3):
        train_step(first, batch(), step)
    weights = {name: value.clone() for name, value in first.setup.network.state_dict().items()}
    saved = {name: value.clone() for name, value in first.state().items()}
    second = classifier_objective(small_classifier())
    second.setup.network.load_state_dict(weights)
    second.load_state(saved)
    for step in range(3, 6):
        train_step(second, batch(), step)
    for a, b in zip(whole.setup.network.parameters(), second.setup.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_epoch_with_a_loss_or_a_weight_that_is_not_finite_is_refused() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    rates = [0.1, 0.2, 0.3]
    check_finite(np.array([3.0, 2.0, 1.0]), rates, network, epoch=2, first_step=3)
    with pytest.raises(DivergedError, match=r"epoch 2: the loss is inf at step 4, whose learning rate is 0\.2"):
        check_finite(np.array([3.0, np.inf, np.nan]), rates, network, epoch=2, first_step=3)
    network[1].running_var[0] = torch.nan
    with pytest.raises(DivergedError, match=r"1\.running_var is not finite at step 5, whose learning rate is 0\.3"):
        check_finite(np.array([3.0, 2.0, 1.0]), rates, network, epoch=2, first_step=3)


def test_auto_is_what_this_machine_has_instructions_for(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {}
    for precision in ("auto", "bfloat16", "float32"):
        objective = classifier_objective(small_classifier(), precision=precision)
        losses[precision] = float(train_step(objective, batch(), 0)[0]["loss"])
    assert losses["bfloat16"] != losses["float32"]
    assert losses["auto"] == losses[fast_precision("cpu")]
    for native, precision in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert fast_precision("cpu") == precision


def test_gradients_are_clipped() -> None:
    network = nn.Linear(1, 1, bias=False)
    config = dataclasses.replace(CONFIG, clip_norm=0.5)
    optimization = Optimization(parameters=list(network.parameters()), config=config, total_steps=10)
    seen: list[torch.Tensor] = []
    optimization.optimizer.register_step_pre_hook(lambda *_: seen.append(network.weight.grad.clone()))
    optimization.minimise(100 * network.weight.sum(), 0)
    assert seen[0].norm() == pytest.approx(0.5, rel=1e-4)
    assert network.weight.grad is None


def purifier_objective(clean_share: float, against: str = "attacks", **changes: object) -> PurifierObjective:
    torch.manual_seed(1)
    setup = Setup(
        config=dataclasses.replace(CONFIG, classifier="x/y", clean_share=clean_share, **changes),
        network=cru_net.build(width=4, levels=2),
        classifier=small_classifier().eval().requires_grad_(False),
        attacks=build_attacks(["fgsm,epsilon=0.1", "pgd,epsilon=0.2,steps=2"]),
        pairs=build_pairs(against),
        total_steps=150,
        device="cpu",
    )
    return PurifierObjective(setup)


def test_the_mixture_has_its_shares_and_depends_on_the_seed_alone() -> None:
    objective = purifier_objective(0.25)
    x = torch.full((400, 1, 8, 8), 0.5)
    seeds = list(range(400))
    data = Batch(x=x, y=torch.zeros(400, dtype=torch.int64), seeds=seeds)
    sizes = (objective.attacked(data, 0.25) - x).abs().flatten(1).amax(dim=1)
    assert (sizes == 0).float().mean() == pytest.approx(0.25, abs=0.07)
    assert (sizes > 0.11).float().mean() == pytest.approx(0.375, abs=0.07)
    part = Batch(x=x[:7], y=data.y[:7], seeds=seeds[:7])
    torch.testing.assert_close(objective.attacked(part, 0.25), objective.attacked(data, 0.25)[:7], rtol=0, atol=1e-5)


def test_training_a_purifier_lowers_its_loss_and_scores_it() -> None:
    objective = purifier_objective(0.0, rate=1e-2)
    losses = [float(train_step(objective, batch(), step)[0]["loss"]) for step in range(150)]
    assert losses[-1] < 0.6 * losses[0]
    sums = validate(objective, iter([batch(), batch(5)]))
    assert sums["n"] == 17
    assert sums["accuracy_adversarial"] <= sums["accuracy_purified"] <= 17
    assert objective.setup.network.training


def images(n: int) -> Batch:
    x = torch.full((n, 1, 8, 8), 0.5)
    return Batch(x=x, y=torch.zeros(n, dtype=torch.int64), seeds=list(range(n)))


def test_noise_makes_pairs_without_an_attack() -> None:
    objective = purifier_objective(0.25, "noise,sigma=0.1")
    x_adv = objective.attacked(images(400), 0.25)
    changes = (x_adv - 0.5).flatten(1)
    assert (changes.abs().amax(dim=1) == 0).float().mean() == pytest.approx(0.25, abs=0.07)
    assert changes[changes.abs().amax(dim=1) > 0].std() == pytest.approx(0.1, rel=0.05)
    assert torch.equal(objective.attacked(images(7), 0.25), x_adv[:7])
    assert purifier_objective(0.0, "noise,sigma=2").attacked(images(40), 0.0).max() == 1
    free = purifier_objective(0.0, "noise,sigma=2,clip=false").attacked(images(400), 0.0) - 0.5
    assert free.std() == pytest.approx(2, rel=0.05)
    ranged = purifier_objective(0.0, "noise,sigma=0.2,least=0.1,clip=false").attacked(images(400), 0.0)
    sigmas = (ranged - 0.5).flatten(1).std(dim=1)
    assert sigmas.min() < 0.12
    assert sigmas.max() > 0.18
    assert sigmas.mean() == pytest.approx(0.15, rel=0.05)
    for text, told in (("sigma=0", "sigma must be above 0"), ("sigma=0.1,least=0.2", "least must be at least 0")):
        with pytest.raises(ValueError, match=told):
            build_pairs(f"noise,{text}")
    with pytest.raises(ValueError, match="known are adaptive, attacked, attacks, noise"):
        build_pairs("noises")


def attacked_dataset(folder: Path, names: list[str], value: int) -> str:
    """Images of one value, in row groups of three, each by its name."""
    encoded = [encode_png(np.full((8, 8, 1), value + number, np.uint8)) for number in range(len(names))]
    columns = {"id": names, "image": encoded, "label": [0] * len(names)}
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "train-0.parquet", row_group_size=3)
    return str(folder)


def test_pairs_of_an_attacked_dataset_are_found_by_their_ids(tmp_path: Path) -> None:
    names = [f"d/{number}.png" for number in (3, 0, 4, 1, 2, 5, 6, 7)]
    objective = purifier_objective(0.5, f"attacked,url={attacked_dataset(tmp_path / 'made', names, 100)}")
    data = dataclasses.replace(images(6), ids=["d/2.png", "d/6.png", "d/3.png", "d/2.png", "d/0.png", "d/7.png"])
    values = objective.attacked(data, 0)[:, 0, 0, 0] * 255
    assert values.round().tolist() == [104, 106, 100, 104, 101, 107]
    some = objective.attacked(data, 0.5)[:, 0, 0, 0]
    assert {value.item() for value in some} & {0.5}
    assert any(value != 0.5 for value in some)
    nowhere = dataclasses.replace(data, ids=["d/9.png"] * 6)
    with pytest.raises(DataError, match=r"no image with the id 'd/9\.png'; attack the data of this training"):
        objective.attacked(nowhere, 0)
    nameless = tmp_path / "nameless"
    nameless.mkdir()
    pq.write_table(pa.table({"image": [encode_png(np.zeros((8, 8, 1), np.uint8))]}), nameless / "train-0.parquet")
    with pytest.raises(DataError, match="have no column 'id'"):
        build_pairs(f"attacked,url={nameless}")


def test_of_several_attacked_datasets_each_images_seed_picks_one(tmp_path: Path) -> None:
    urls = [
        attacked_dataset(tmp_path / str(value), [f"d/{number}.png" for number in numbers], value)
        for value, numbers in ((100, range(6)), (200, range(5, -1, -1)))
    ]
    written = "[" + ",".join(f'"{url}"' for url in urls) + "]"
    objective = purifier_objective(0.25, f"attacked,url={written}")
    data = dataclasses.replace(images(6), ids=[f"d/{number}.png" for number in range(6)])
    picked = []
    for epoch in range(60):
        again = dataclasses.replace(data, seeds=[100 * epoch + number for number in range(6)])
        picked += enumerate((objective.attacked(again, 0.25)[:, 0, 0, 0] * 255).round().tolist())
    assert {value for number, value in picked if number == 1} == {101, 204, 128}
    kinds = np.array([0 if value == 128 else 1 + (value > 150) for _, value in picked])
    assert np.bincount(kinds) / len(kinds) == pytest.approx([0.25, 0.375, 0.375], abs=0.08)
    has = objective.setup.pairs.has
    assert has(["d/5.png", "d/6.png", "other"]).tolist() == [True, False, False]


def test_a_small_attacked_dataset_is_not_lost_beside_a_large_one(tmp_path: Path) -> None:
    urls = [
        attacked_dataset(tmp_path / str(value), [f"d/{number}.png" for number in range(count)], value)
        for value, count in ((100, 8), (200, 2))
    ]
    objective = purifier_objective(0.0, f'attacked,url=["{urls[0]}","{urls[1]}"]')
    data = dataclasses.replace(images(8), ids=[f"d/{number}.png" for number in range(8)])
    small = np.zeros(8)
    for epoch in range(100):
        again = dataclasses.replace(data, seeds=[100 * epoch + number for number in range(8)])
        small += (objective.attacked(again, 0.0)[:, 0, 0, 0] * 255 > 150).numpy()
    assert not small[2:].any(), "only one dataset has these"
    assert small[:2] / 100 == pytest.approx([0.8, 0.8], abs=0.12)
    assert objective.setup.pairs.has(["d/1.png", "d/7.png", "d/8.png"]).tolist() == [True, True, False]


def test_attacked_partners_go_through_the_random_change_of_their_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    columns = {"id": list("abcd"), "image": [encode_png(image) for image in pixels], "label": [0] * 4}
    (tmp_path / "made").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "made" / "train-0.parquet")
    objective = purifier_objective(0.0, f"attacked,url={tmp_path}/made", augmentation="flip_crop")
    x_adv, x = objective.pairs(batch_of(pixels, np.zeros(4, np.int64), [5, 6, 7, 8], "cpu", list("abcd")))
    assert torch.equal(x_adv, x), "an attack that changed nothing"
    assert not torch.equal(x, batch_of(pixels, np.zeros(4, np.int64), (), "cpu").x)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_adaptive_pairs_go_through_the_purifier_and_leave_it_as_it_was(precision: Precision) -> None:
    objective = purifier_objective(0.0, "adaptive", precision=precision)
    network = objective.setup.network
    data = batch(12)
    with autocast("cpu", precision):
        static = purifier_objective(0.0).attacked(data, 0)
        assert torch.equal(objective.attacked(data, 0), static), "a new CRU-Net is the identity"
        nn.init.normal_(network.output.weight, std=0.5)
        assert not torch.equal(objective.attacked(data, 0), static)
    assert network.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    before = [parameter.detach().clone() for parameter in network.parameters()]
    train_step(objective, data, 0)
    assert all(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)), "all are trained"


def test_adaptive_attacks_grow_to_their_radius() -> None:
    objective = purifier_objective(0.0, "adaptive,ramp=0.5", label_weight=1.0)
    grown = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        x_adv = objective.attacked(images(40), 0.0, progress=progress)
        grown.append((x_adv - 0.5).abs().flatten(1).amax(dim=1).max().item())
    assert grown == pytest.approx([0.04, 0.12, 0.2, 0.2], abs=1e-6)
    assert objective.attacked(images(40), 0.0).sub(0.5).abs().max().item() == pytest.approx(0.2, abs=1e-6)
    seen = []
    objective.attacked = lambda batch, clean_share, **more: (seen.append(more["progress"]), batch.x)[1]  # type: ignore[method-assign]
    for step in (0, 75):
        train_step(objective, batch(), step)
    assert seen == [0.0, 0.5]
    with pytest.raises(ValueError, match="ramp must be in"):
        build_pairs("adaptive,ramp=2")


@pytest.mark.parametrize(("pixels", "labels"), [(1.0, 0.0), (0.0, 2.0), (0.5, 3.0)])
def test_a_purifiers_loss_is_of_its_pixels_and_of_the_labels_behind_it(pixels: float, labels: float) -> None:
    objective = purifier_objective(0.0, pixel_weight=pixels, label_weight=labels)
    data = batch(12)
    x_adv, x = objective.pairs(data)
    logits = objective.setup.classifier(objective.setup.network(x_adv))
    of_pixels, of_labels = objective.setup.network.training_loss(x_adv, x), nn.functional.cross_entropy(logits, data.y)
    torch.testing.assert_close(objective.loss(data), pixels * of_pixels + labels * of_labels)


class Adversarial(PurifierObjective):
    """A GAN's two players: a critic that takes two steps, and the purifier."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        make = functools.partial(torch.optim.Adam, betas=(0.5, 0.9))
        self.critic = self.train_beside(
            "critic", nn.Sequential(nn.Flatten(), nn.Linear(64, 1, bias=False)), optimizer=make
        )

    def step(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        x_adv, x = self.pairs(batch)
        for _ in range(2):
            with torch.no_grad():
                pure = self.setup.network(x_adv)
            told = self.optimizations["critic"].minimise((self.critic(pure) - self.critic(x)).mean(), step)
        loss = self.setup.network.training_loss(x_adv, x) - self.critic(self.setup.network(x_adv)).mean()
        return {"loss": self.optimizations["network"].minimise(loss, step), "critic": told}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_objective_with_two_optimisers_learns_and_resumes(precision: Precision) -> None:
    def start() -> Objective:
        return Adversarial(purifier_objective(0.1, precision=precision).setup)

    def weights(objective: Objective) -> list[torch.Tensor]:
        return [*objective.setup.network.state_dict().values(), *objective.networks["critic"].state_dict().values()]

    undisturbed = start()
    beginning = [value.clone() for value in weights(undisturbed)]
    for step in range(4):
        losses, rate = train_step(undisturbed, batch(), step)
    assert set(losses) == {"loss", "critic"}
    assert rate == undisturbed.optimizations["network"].rate(3)
    assert all(not torch.equal(a, b) for a, b in zip(beginning, weights(undisturbed), strict=True))
    assert {value["step"].item() for value in undisturbed.optimizations["critic"].optimizer.state.values()} == {8}

    first = start()
    for step in range(2):
        train_step(first, batch(), step)
    second = start()
    second.setup.network.load_state_dict({k: v.clone() for k, v in first.setup.network.state_dict().items()})
    second.load_state({name: value.clone() for name, value in first.state().items()})
    for step in range(2, 4):
        train_step(second, batch(), step)
    assert all(torch.equal(a, b) for a, b in zip(weights(undisturbed), weights(second), strict=True))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"clean_share": 1.5}, "clean_share"),
        ({"pixel_weight": 0.0}, "one of them above"),
        ({"label_weight": -1.0}, "one of them above"),
        ({"label_weight": 1.0}, r"label_weight = 1\.0 would change nothing"),
        ({"epochs": 0}, "epochs"),
        ({"precision": "fp16"}, "precision"),
        ({"batch": -8}, "batch"),
        ({"validation": -1}, "validation"),
        ({"limit": 0}, "limit must be at least 1; got 0"),
        ({"patience": 0}, "patience must be at least 1; got 0"),
        ({"patience": 3, "validation": 0}, "patience = 3 needs held-out images"),
        ({"classifier": "x/y", "attacks": ()}, "attacks"),
        ({"attacks": ("fgsm",)}, r"attacks = \('fgsm',\) would change nothing"),
        ({"clean_share": 0.0}, r"clean_share = 0\.0 would change nothing"),
    ],
)
def test_refuses_bad_values_by_name(change: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(CONFIG, **change)


@pytest.fixture
def tf32() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32, cudnn.allow_tf32 = True, True
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_float32_is_not_tf32_and_what_was_set_is_put_back(precision: Precision, tf32: None) -> None:
    seen = []

    def look(*_: object) -> None:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))

    network = small_classifier()
    network.register_forward_hook(look)
    network[1].weight.register_hook(look)
    train_step(classifier_objective(network, precision=precision), batch(), 0)
    assert seen == [(precision == "bfloat16",) * 2] * 2, "the way there and the way back"
    with pytest.raises(RuntimeError), autocast("cpu", precision):
        raise RuntimeError
    look()
    assert seen[-1] == (True, True)


def test_a_radius_as_a_fraction_is_the_same_training() -> None:
    fraction = dataclasses.replace(CONFIG, classifier="c", attacks=("fgsm,epsilon=8/255", "pgd,epsilon=0.3,steps=5"))
    assert fraction.attacks == (f"fgsm,epsilon={8 / 255}", "pgd,epsilon=0.3,steps=5")
    noise = dataclasses.replace(CONFIG, classifier="c", train_against="noise,sigma=16/255")
    assert noise == dataclasses.replace(noise, train_against=f"noise,sigma={16 / 255}")
