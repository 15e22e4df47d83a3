"""Small real networks."""

import pytest
import torch
from torch import nn

from raypurify import models
from raypurify.classifiers import a_net
from raypurify.purifiers import cru_net
from raypurify.storage import checkpoints


@pytest.fixture(scope="session")
def small_classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A-net with random weights."""
    folder = str(tmp_path_factory.mktemp("weights") / "small_a_net")
    torch.manual_seed(0)
    checkpoints.save(folder, {"kind": "classifier", "plugin": "a_net", "params": {}}, a_net.build().state_dict())
    return folder


def linear() -> nn.Module:
    """A classifier of 28x28 grey images that takes next to no time; its random weights are always the same."""
    layer = nn.Linear(28 * 28, 10, bias=False)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    return nn.Sequential(nn.Flatten(), layer)


@pytest.fixture(scope="session")
def small_purifier(small_classifier: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A narrow CRU-Net that changes its images, said to be trained for the small classifier."""
    folder = str(tmp_path_factory.mktemp("weights") / "small_cru_net")
    torch.manual_seed(1)
    network = cru_net.build(width=2)
    torch.nn.init.normal_(network.output.weight, std=0.2)
    trained_for = {"classifier": "small_a_net", "sha256": models.load("classifier", small_classifier).sha256}
    config = {"kind": "purifier", "plugin": "cru_net", "params": {"width": 2}, "trained_for": trained_for}
    checkpoints.save(folder, config, network.state_dict())
    return folder
