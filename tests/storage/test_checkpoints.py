import json
from pathlib import Path

import pytest
import torch

from raypurify.storage import checkpoints


def test_weights_come_back_with_their_hash(tmp_path: Path) -> None:
    state = {"w": torch.rand(3, 2), "b": torch.zeros(2, dtype=torch.int64)}
    checkpoints.save(str(tmp_path), {"kind": "classifier"}, state, {"accuracy": 1.0})
    config, loaded, sha256 = checkpoints.load(str(tmp_path))
    assert config == {"kind": "classifier"}
    assert all(torch.equal(state[name], loaded[name]) for name in state)
    assert len(sha256) == 64
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"accuracy": 1.0}


def test_weights_that_are_not_there_or_not_safetensors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoints.load(str(tmp_path))
    checkpoints.save(str(tmp_path), {}, {"w": torch.zeros(1)})
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="not a safetensors file"):
        checkpoints.load(str(tmp_path))
