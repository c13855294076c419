import copy
from typing import Any

import pytest
import torch

import emo_torch
from emo_torch._testing import same_state


def test_averaged_buffers() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    buffers = emo_torch.AveragedBuffers(model)
    norm: Any = model[1]
    wanted = None
    for step in range(1, 13):
        model(torch.randn(8, 4))
        buffers.update()
        mean = norm.running_mean.clone()
        wanted = mean if wanted is None else wanted + min(1.0, 9 / (step + 8)) * (mean - wanted)
    trained, count = norm.running_mean.clone(), int(norm.num_batches_tracked)
    saved = copy.deepcopy(buffers.state_dict())
    buffers.eval()
    buffers.eval()
    torch.testing.assert_close(norm.running_mean, wanted)
    assert int(norm.num_batches_tracked) == count
    with pytest.raises(RuntimeError, match="train"):
        buffers.update()
    buffers.train()
    assert torch.equal(norm.running_mean, trained)
    other = emo_torch.AveragedBuffers(model)
    other.load_state_dict(saved)
    assert same_state(other.state_dict(), buffers.state_dict())
    with pytest.raises(ValueError, match=r"no buffer '1\.running"):
        emo_torch.AveragedBuffers(torch.nn.Linear(2, 2)).load_state_dict(saved)
    for part, message in (
        ({"states": {}}, "lacks step, is_training"),
        ({**saved, "states": {"x": {}}}, "'x'"),
        ({**saved, "states": None}, "'states' must hold a dict"),
        ({**saved, "step": "x"}, "'step' must be a whole number >= 0, and is 'x'"),
        ({**saved, "step": -8}, "'step'"),
        ({**saved, "is_training": "no"}, "'is_training' must be a bool"),
        ({**saved, "states": {"1.running_mean": {"average": [0.0]}}}, "tensor of floats"),
    ):
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(part)
    assert same_state(other.state_dict(), buffers.state_dict())
    nothing: Any = None
    with pytest.raises(TypeError, match=r"result of its `state_dict"):
        other.load_state_dict(nothing)


def test_buffers_that_share_their_memory_come_back() -> None:
    memory = torch.ones(4)
    model = torch.nn.Module()
    model.register_buffer("first", memory[:3])
    model.register_buffer("second", memory[1:])
    buffers = emo_torch.AveragedBuffers(model)
    for _ in range(4):
        memory.add_(1.0)
        buffers.update()
    buffers.eval()
    buffers.train()
    assert memory.tolist() == [5.0] * 4
