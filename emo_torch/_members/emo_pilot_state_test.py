"""EmoPilot's averaged weights, checkpoints, copies and states."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import emo_torch
from emo_torch._members.emo_pilot_test import drive, problem, run, train, whole_state
from emo_torch._testing import mean_squared_error, same_state, small_model

# Averaged weights.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_eval_shows_the_average_and_train_brings_back_every_bit(dtype: torch.dtype) -> None:
    params, optimizer = run(dtype)
    trained = [param.detach().clone() for param in params]
    averages = [optimizer.state[param]["average"].clone() for param in params]
    optimizer.eval()
    optimizer.eval()  # A second call changes nothing.
    assert all(torch.equal(p, a.to(dtype)) for p, a in zip(params, averages, strict=True))
    optimizer.train()
    optimizer.train()
    assert all(map(torch.equal, params, trained))
    assert all(torch.equal(optimizer.state[p]["average"], a) for p, a in zip(params, averages, strict=True))
    assert all("trained" not in optimizer.state[param] for param in params)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_that_is_listed_twice_has_one_average(dtype: torch.dtype) -> None:
    param = torch.nn.Parameter(torch.ones(3, dtype=dtype))
    optimizer = emo_torch.EmoPilot([param, param], lr=0.1)
    for _ in range(3):
        param.grad = torch.ones_like(param)
        optimizer.step(loss=1.0)
    trained, average = param.detach().clone(), optimizer.state[param]["average"].to(dtype, copy=True)
    assert not torch.equal(trained, average)
    optimizer.eval()
    assert torch.equal(param, average)
    optimizer.train()
    assert torch.equal(param, trained)


def test_a_step_in_eval_mode_is_refused_before_anything_has_changed() -> None:
    _, optimizer = run(steps=6)
    optimizer.eval()
    before = whole_state(optimizer)
    called = []
    with pytest.raises(RuntimeError, match=r"optimizer\.train\(\)"):
        optimizer.step(lambda: called.append(1), loss=1.0)
    assert not called
    assert same_state(before, whole_state(optimizer))
    with pytest.raises(ValueError, match=r"optimizer\.train\(\)"):
        emo_torch.to_arrays(
            optimizer, [(str(i), p) for i, p in enumerate(optimizer.param_groups[0]["params"])]
        )


def as_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_checkpoint_in_either_mode_resumes_as_if_nothing_had_happened(
    mode: str, dtype: torch.dtype
) -> None:
    model, whole = small_model().to(dtype), small_model().to(dtype)
    optimizer, twin = emo_torch.EmoPilot(model.parameters()), emo_torch.EmoPilot(whole.parameters())

    def go_on(net: torch.nn.Module, own: Any, steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for param in net.parameters():
                param.grad = torch.randn(param.shape, generator=generator).to(dtype)
            own.step(loss=2.0 + math.sin(step))

    go_on(model, optimizer, range(8))
    go_on(whole, twin, range(14))
    getattr(optimizer, mode)()
    saved = as_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    resumed = small_model(1).to(dtype)
    other = emo_torch.EmoPilot(resumed.parameters())
    resumed.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    assert other.param_groups[0]["train_mode"] is (mode == "train")
    other.train()
    go_on(resumed, other, range(8, 14))
    assert all(map(torch.equal, resumed.parameters(), whole.parameters()))
    assert same_state(other.state_dict(), twin.state_dict())


@pytest.mark.parametrize("way", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_goes_on_alike_and_apart(way: Callable[[Any], Any]) -> None:
    _, optimizer = run(steps=8)
    other = way(optimizer)
    before = whole_state(optimizer)
    _, grads, losses = problem()
    drive(other, grads[8:], losses[8:])
    assert same_state(before, whole_state(optimizer))
    drive(optimizer, grads[8:], losses[8:])
    assert same_state(whole_state(other), whole_state(optimizer))


def test_a_damaged_average_is_refused() -> None:
    _, optimizer = run(steps=2)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["average"] = torch.zeros(2)
    with pytest.raises(ValueError, match="average"):
        optimizer.load_state_dict(saved)


def test_the_state_of_adamw_can_be_loaded() -> None:
    model = small_model()
    adamw = torch.optim.AdamW(model.parameters())
    mean_squared_error(model, 0).backward()
    adamw.step()
    optimizer = emo_torch.EmoPilot(model.parameters())
    optimizer.load_state_dict(adamw.state_dict())
    first = next(model.parameters())
    assert torch.equal(optimizer.state[first]["exp_avg"], adamw.state[first]["exp_avg"])
    train(model, optimizer, range(1, 4))
    assert int(optimizer.state[first]["step"]) == 4
