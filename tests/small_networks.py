"""Small real networks, as checkpoints."""

import pytest
import torch

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
