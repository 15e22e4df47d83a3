import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from raypurify.purifiers import cru_net
from raypurify.training import (
    Batch,
    ClassifierObjective,
    DivergedError,
    Optimization,
    Precision,
    PurifierLoss,
    PurifierObjective,
    TrainingConfig,
    augment,
    autocast,
    batch_of,
    build_attacks,
    check_finite,
    fast_precision,
    train_step,
    validate,
)

CONFIG = TrainingConfig(data="digits", model="a_net", precision="float32")


def small_classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


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


def test_resuming_repeats_the_undisturbed_run() -> None:
    def start() -> tuple[nn.Module, Optimization]:
        network = small_classifier()
        return network, Optimization(parameters=list(network.parameters()), config=CONFIG, total_steps=6)

    objective = ClassifierObjective(augmentation="none")
    whole, optimization = start()
    for step in range(6):
        train_step(whole, objective, optimization, batch(), step, "cpu")

    first, optimization = start()
    for step in range(3):
        train_step(first, objective, optimization, batch(), step, "cpu")
    weights = {name: value.clone() for name, value in first.state_dict().items()}
    saved = {name: value.clone() for name, value in optimization.state().items()}
    second, optimization = start()
    second.load_state_dict(weights)
    optimization.load_state(saved)
    for step in range(3, 6):
        train_step(second, objective, optimization, batch(), step, "cpu")
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
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
        network = small_classifier()
        config = dataclasses.replace(CONFIG, precision=precision)
        optimization = Optimization(parameters=list(network.parameters()), config=config, total_steps=6)
        objective = ClassifierObjective(augmentation="none")
        losses[precision] = float(train_step(network, objective, optimization, batch(), 0, "cpu")[0])
    assert losses["bfloat16"] != losses["float32"]
    assert losses["auto"] == losses[fast_precision("cpu")]
    for native, precision in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert fast_precision("cpu") == precision


def test_gradients_are_clipped() -> None:
    network = nn.Linear(1, 1, bias=False)
    config = dataclasses.replace(CONFIG, clip_norm=0.5)
    optimization = Optimization(parameters=list(network.parameters()), config=config, total_steps=10)
    network.weight.grad = torch.full((1, 1), 100.0)
    seen = []
    optimization.optimizer.register_step_pre_hook(lambda *_: seen.append(network.weight.grad.clone()))
    optimization.apply(0)
    assert seen[0].norm() == pytest.approx(0.5, rel=1e-4)
    assert network.weight.grad is None


def purifier_objective(clean_share: float) -> PurifierObjective:
    return PurifierObjective(
        victim=small_classifier().eval().requires_grad_(False),
        attacks=build_attacks(["fgsm,epsilon=0.1", "pgd,epsilon=0.2,steps=2"]),
        clean_share=clean_share,
        augmentation="none",
    )


def test_the_mixture_has_its_shares_and_depends_on_the_seed_alone() -> None:
    objective = purifier_objective(0.25)
    x = torch.full((400, 1, 8, 8), 0.5)
    seeds = list(range(400))
    data = Batch(x=x, y=torch.zeros(400, dtype=torch.int64), seeds=seeds)
    sizes = (objective.attacked(data) - x).abs().flatten(1).amax(dim=1)
    assert (sizes == 0).float().mean() == pytest.approx(0.25, abs=0.07)
    assert (sizes > 0.11).float().mean() == pytest.approx(0.375, abs=0.07)
    part = Batch(x=x[:7], y=data.y[:7], seeds=seeds[:7])
    torch.testing.assert_close(objective.attacked(part), objective.attacked(data)[:7], rtol=0, atol=1e-5)


def test_training_a_purifier_lowers_its_loss_and_scores_it() -> None:
    objective = purifier_objective(0.0)
    network = cru_net.build(width=4, levels=2)
    model = PurifierLoss(network)
    config = dataclasses.replace(CONFIG, rate=1e-2)
    optimization = Optimization(parameters=list(network.parameters()), config=config, total_steps=150)
    losses = [float(train_step(model, objective, optimization, batch(), step, "cpu")[0]) for step in range(150)]
    assert losses[-1] < 0.6 * losses[0]
    sums = validate(network, objective, iter([batch(), batch(5)]))
    assert sums["n"] == 17
    assert sums["accuracy_adversarial"] <= sums["accuracy_purified"] <= 17
    assert network.training


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"clean_share": 1.5}, "clean_share"),
        ({"epochs": 0}, "epochs"),
        ({"precision": "fp16"}, "precision"),
        ({"batch": -8}, "batch"),
        ({"validation": -1}, "validation"),
        ({"limit": 0}, "limit must be at least 1; got 0"),
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
    config = dataclasses.replace(CONFIG, precision=precision)
    optimization = Optimization(parameters=list(network.parameters()), config=config, total_steps=1)
    train_step(network, ClassifierObjective(augmentation="none"), optimization, batch(), 0, "cpu")
    assert seen == [(precision == "bfloat16",) * 2] * 2, "the way there and the way back"
    with pytest.raises(RuntimeError), autocast("cpu", precision):
        raise RuntimeError
    look()
    assert seen[-1] == (True, True)
