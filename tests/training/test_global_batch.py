"""Layers that draw over a batch draw the same for an image, whatever the number of workers."""

import pytest
import torch
from torch import nn

from raypurify.training.global_batch import Lane, with_global_batch
from raypurify.training.order import LANES

BATCH = 240
"""Images of a global batch, which all numbers of workers below divide."""


def dropped(rank: int, workers: int, layer: nn.Module) -> torch.Tensor:
    """What a worker's part of a global batch of ones is after two passes through a layer."""
    part, size = BATCH // LANES, BATCH // workers
    lanes = []
    for lane in range(LANES):
        edges = [min(max(edge - lane * part, 0), part) for edge in (rank * size, (rank + 1) * size)]
        if edges[0] < edges[1]:
            generator = torch.Generator().manual_seed(lane)
            lanes.append(Lane(generator=generator, images=part, own=range(*edges)))
    network = with_global_batch(nn.Sequential(layer), lanes).train()
    x = torch.ones(size, 6, 4, 4)
    return torch.stack([network(x), network(x)])


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.Dropout2d(0.5)])
@pytest.mark.parametrize("workers", [2, 3, 5, 8, 16, 60])
def test_masks_belong_to_places_in_the_global_batch(workers: int, layer: nn.Module) -> None:
    alone = dropped(0, 1, layer)
    assert 0.4 < (alone == 0).float().mean() < 0.6
    assert not alone[0].equal(alone[1])
    assert torch.cat([dropped(rank, workers, layer) for rank in range(workers)], dim=1).equal(alone)


def test_a_batch_of_any_size_passes() -> None:
    lanes = [
        Lane(generator=torch.Generator(), images=6, own=range(2, 6)),
        Lane(generator=torch.Generator(), images=6, own=range(3)),
    ]
    network = with_global_batch(nn.Sequential(nn.Dropout(0.5)), lanes).train()
    for images in (1, 5, 7, 20):
        assert set(network(torch.ones(images, 50)).unique().tolist()) <= {0.0, 2.0}
