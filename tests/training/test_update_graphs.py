"""Steps of a training by CUDA graphs are its steps."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raypurify import models
from raypurify.plugins import Spec
from raypurify.training.batches import Batch
from raypurify.training.config import TrainingConfig
from raypurify.training.global_batch import Lane, with_global_batch
from raypurify.training.objectives import (
    ClassifierObjective,
    Objective,
    PurifierObjective,
    Setup,
    build_attacks,
    build_pairs,
    train_step,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU on this machine"),
]
STEPS = 26
"""A generator of five steps of its critic is captured at the twentieth."""


def without_dropout(network: nn.Module) -> nn.Module:
    """PyTorch's own would draw other masks for each of two networks; a training's workers exchange them."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def objective_of(kind: models.Kind, text: str, **changes: Any) -> Objective:
    torch.manual_seed(0)
    spec = Spec.parse(text)
    classifier = None if kind == "classifier" else models.load("classifier", "weights/mnist/a_net").build().cuda()
    setup = Setup(
        config=TrainingConfig(data="digits", model=text, classifier=classifier and "weights/mnist/a_net", **changes),
        network=without_dropout(models.placed(models.untrained(kind, spec).train(), "cuda")),
        classifier=classifier,
        attacks=build_attacks(["fgsm,epsilon=0.1"]),
        pairs=build_pairs("attacks"),
        total_steps=STEPS,
        device="cuda",
        prepared=lambda network: network.cuda(),
    )
    usual = ClassifierObjective if kind == "classifier" else PurifierObjective
    return (models.beside(kind, spec, "objective") or usual)(setup)


def batch_of(number: int, count: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    x = torch.rand(count, 1, 28, 28, generator=generator).cuda().contiguous(memory_format=torch.channels_last)
    return Batch(x=x, y=torch.arange(count).cuda() % 10, seeds=range(number, number + count))


def trained(objective: Objective) -> tuple[list[float], torch.Tensor]:
    """The losses of some steps, the last of another size; and the weights."""
    losses = []
    for step in range(STEPS):
        told, _ = train_step(objective, batch_of(step, 5 if step == STEPS - 1 else 32), step)
        losses.append(float(told["loss"]))
    return losses, torch.cat([weight.detach().flatten() for weight in objective.setup.network.parameters()])


@pytest.mark.parametrize(
    ("kind", "text", "changes"),
    [
        ("classifier", "a_net", {}),
        ("purifier", "cru_net,width=4", {"pixel_weight": 100, "logit_weight": 1}),
        ("purifier", "ddsa,width=4", {}),
        ("purifier", "magnet", {}),
        ("purifier", "cgan_defense,width=4", {}),
        ("purifier", "defense_gan,width=4", {}),
        ("purifier", "dragan_defense,width=4", {}),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_by_graphs(kind: models.Kind, text: str, changes: Any, precision: models.Precision) -> None:
    by_graphs, plain = (objective_of(kind, text, precision=precision, **changes) for _ in range(2))
    plain.update_graphs = None
    found, expected = trained(by_graphs), trained(plain)
    graphs = by_graphs.update_graphs
    assert graphs is not None
    assert graphs._possible
    assert graphs._made
    # Roundings grow from step to step.
    tolerance = 1e-3 if precision == "float32" else 5e-2
    first = slice(0, 7)
    np.testing.assert_allclose(found[0][first], expected[0][first], rtol=tolerance, atol=tolerance)
    assert (found[1] - expected[1]).norm() < 0.1 * expected[1].norm()


def test_what_draws_at_each_step_goes_without() -> None:
    objective = objective_of("classifier", "a_net")
    objective.setup.network.add_module("dropout", nn.Dropout(0.5).cuda())
    lanes = [Lane(generator=torch.Generator("cuda"), images=32, own=range(32))]
    with_global_batch(objective.setup.network, lanes)
    assert objective.update_graphs is None


@pytest.mark.filterwarnings("default")
def test_an_update_that_waits_is_called() -> None:
    class Waiting(ClassifierObjective):
        def loss_of(self, *tensors: torch.Tensor) -> torch.Tensor:
            loss = super().loss_of(*tensors)
            return loss * (1 if loss.item() > -1 else 2)

    setup = objective_of("classifier", "a_net").setup
    objective = Waiting(setup)
    with pytest.warns(UserWarning, match="no CUDA graphs of the training's steps"):
        losses, _ = trained(objective)
    assert all(loss > 0 for loss in losses)
    assert objective.update_graphs is not None
    assert not objective.update_graphs._made
    assert torch.cuda.get_sync_debug_mode() == 0
