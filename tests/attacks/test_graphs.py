"""A victim by its CUDA graphs is the victim."""

import pytest
import torch
from torch import Tensor, nn

from raypurify import models
from raypurify.attacks import Composite, Graphs, frozen
from raypurify.attacks._gradients import input_gradient
from raypurify.attacks.pgd import PGD
from raypurify.classifiers import a_net
from raypurify.purifiers import cru_net, gaussian_noise, magnet

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU on this machine"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=on_gpu)]


def victim_on(device: str) -> Composite:
    torch.manual_seed(0)
    purifier = cru_net.build(width=4)
    nn.init.normal_(purifier.output.weight, std=0.05)
    return Composite(*(models.placed(network, device).eval() for network in (a_net.build(), purifier)))


def gradient(victim: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    return input_gradient(victim, x, torch.arange(len(x), device=x.device) % 10)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_those_of_the_victim_also_after_its_weights_have_changed(device: str) -> None:
    victim, graphs = victim_on(device), Graphs()
    with frozen(victim), models.full_float32():
        for count in (64, 5, 70, 64):
            x = torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(count)).to(device)
            for images in (x, x.flip(0)):
                for found, expected in zip(gradient(graphs.of(victim), images), gradient(victim, images), strict=True):
                    # A batch that is filled up may be summed in another order, so that a ReLU near 0 turns.
                    assert (found - expected).norm() < 1e-2 * expected.norm()
            with torch.no_grad():
                for weight in victim.parameters():
                    weight.mul_(1.1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pgd_makes_the_same_images(device: str, precision: models.Precision) -> None:
    victim, attack = victim_on(device), PGD(epsilon=0.1, steps=5)
    x, y = torch.rand(20, 1, 28, 28).to(device), torch.arange(20).to(device) % 10
    with torch.no_grad(), frozen(victim), models.autocast(device, precision):
        found, expected = (attack(one, x, y, seeds=range(20)).x_adv for one in (Graphs().of(victim), victim))
    # A gradient near 0 may round to the other sign.
    assert (found - expected).abs().gt(1e-5).float().mean() < 0.05
    assert (found - x).abs().max() > 0.09


class Annealed(nn.Identity):
    cuda_graphs = False


@pytest.mark.parametrize("purifier", [gaussian_noise.build(), magnet.build(), nn.Sequential(Annealed())])
def test_a_victim_that_draws_or_suspects_or_says_so_stays_what_it_is(purifier: nn.Module) -> None:
    victim = Composite(a_net.build(), purifier)
    assert Graphs().of(victim) is victim


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU on this machine")
def test_a_victim_that_cannot_be_captured_is_called() -> None:
    class Waiting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :10] * x.sum().item()

    x = torch.rand(64, 1, 28, 28, device="cuda")
    stream = torch.cuda.current_stream()
    with pytest.warns(UserWarning, match="no CUDA graphs .* synchronizing"):
        found = gradient(Graphs().of(Waiting().eval()), x)
    for one, expected in zip(found, gradient(Waiting(), x), strict=True):
        torch.testing.assert_close(one, expected)
    assert torch.cuda.current_stream() == stream
    assert torch.cuda.get_sync_debug_mode() == 0
    torch.cuda.empty_cache()
    victim = victim_on("cuda")
    with frozen(victim):
        assert gradient(Graphs().of(victim), x)[0].isfinite().all()
