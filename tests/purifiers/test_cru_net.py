"""CRU-Net is what the paper's Section 4 describes."""

import pytest
import torch
from torch import nn

from raypurify.purifiers.cru_net import CRUNet, DenoisingBlock, build, params_for


def randomised(**params: object) -> CRUNet:
    torch.manual_seed(0)
    network = build(**params)
    nn.init.normal_(network.output.weight, std=0.2)
    return network.eval()


def test_starts_as_the_identity() -> None:
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(build()(x), x)


def test_what_a_new_network_passes_on_does_not_fade() -> None:
    torch.manual_seed(0)
    network = build()
    x = torch.rand(8, 1, 28, 28)
    seen: list[float] = []
    network.output.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].std(dim=0).mean().item()))
    network(x)
    assert seen[0] > 0.1 * x.std(dim=0).mean()


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (1, 1), (5, 7), (29, 64), (3, 100)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_keeps_its_shape_and_range(size: tuple[int, int], channels: int) -> None:
    x = torch.rand(2, channels, *size)
    y = randomised(channels=channels, width=4)(x)
    assert y.shape == x.shape
    assert y.min() >= 0
    assert y.max() <= 1
    assert not torch.equal(y, x)


def test_levels_are_28_14_and_7() -> None:
    network = build()
    sizes: list[tuple[int, int]] = []
    for module in network.modules():
        if isinstance(module, DenoisingBlock):
            module.register_forward_hook(lambda _m, _i, output: sizes.append((output.shape[1], output.shape[2])))
    network(torch.rand(1, 1, 28, 28))
    assert sizes == [(16, 28), (16, 28), (32, 14), (32, 14), (64, 7), (64, 7), (32, 14), (32, 14), (16, 28), (16, 28)]


def test_a_block_joins_its_first_and_last_convolution() -> None:
    block = DenoisingBlock(8, 0.3)
    assert [conv.out_channels for conv in (block.reduce, block.conv1, block.conv2, block.join)] == [4, 4, 4, 8]
    assert block.join.in_channels == 8
    assert all(conv.kernel_size == (3, 3) for conv in (block.reduce, block.conv1, block.conv2, block.join))


def test_every_activation_has_kerass_slope() -> None:
    slopes = {module.negative_slope for module in build().modules() if isinstance(module, nn.LeakyReLU)}
    assert slopes == {0.3}


def test_the_loss_sees_the_unclipped_output() -> None:
    network = build(width=4)
    nn.init.constant_(network.output.bias, 2.0)  # far above 1: the clip would leave no gradient
    x = torch.rand(2, 1, 8, 8)
    network.training_loss(x, x).backward()
    assert network.output.bias.grad is not None
    assert network.output.bias.grad.abs().sum() > 0
    assert network(x).max() <= 1


@pytest.mark.parametrize(
    ("params", "field"),
    [({"width": 3}, "width"), ({"levels": 0}, "levels"), ({"blocks": 0}, "blocks"), ({"channels": 0}, "channels")],
)
def test_refuses_bad_shapes(params: dict[str, int], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        build(**params)


def test_levels_blocks_and_width_are_free() -> None:
    x = torch.rand(1, 3, 20, 20)
    assert randomised(channels=3, width=6, levels=4, blocks=3)(x).shape == x.shape
    assert randomised(channels=3, width=6, levels=1, blocks=1)(x).shape == x.shape


def test_params_for_takes_the_channels() -> None:
    assert params_for((32, 32, 3), 10) == {"channels": 3}
