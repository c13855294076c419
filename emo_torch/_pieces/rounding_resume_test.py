"""Rounded runs that are saved, copied, resumed and changed in dtype."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch._pieces.rounding_test import every_foreach, every_rounding

# The state.


def start(options: dict[str, Any], cls: Any = emo_torch.EmoSens) -> tuple[Any, Any]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).to(torch.bfloat16)
    return net, cls([{"params": layer.parameters()} for layer in net], **options)


def train(net: Any, optimizer: Any, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for param in net.parameters():
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step(loss=float("nan") if step == 3 else 1.0)


def through_a_file(saved: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def by_file(net: Any, optimizer: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    twin, resumed = start(options, type(optimizer))
    twin.load_state_dict(through_a_file(net.state_dict()))
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    return twin, resumed


WAYS: dict[str, Any] = {
    "file": by_file,
    "copy": lambda net, optimizer, _: copy.deepcopy((net, optimizer)),
    "pickle": lambda net, optimizer, _: pickle.loads(pickle.dumps((net, optimizer))),
}


@pytest.mark.parametrize("cls", [emo_torch.EmoSens, emo_torch.RefAdamWMiniScheduleFree])
@pytest.mark.parametrize("way", WAYS)
@every_rounding
def test_a_run_that_was_broken_off_goes_on_as_if_it_had_not(rounding: str, way: str, cls: Any) -> None:
    options = {"rounding": rounding, "lr": 1e-4}
    net, optimizer = start(options, cls)
    train(net, optimizer, 0, 6)
    twin, resumed = WAYS[way](net, optimizer, options)
    train(net, optimizer, 6, 12)
    train(twin, resumed, 6, 12)
    for ours, theirs in zip(twin.parameters(), net.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        if rounding == "kahan":
            rest = resumed.state[ours]["compensation"]
            assert rest.dtype == torch.bfloat16
            assert bool(rest.any())
            assert torch.equal(rest, optimizer.state[theirs]["compensation"])


def test_a_state_of_before_starts_at_0() -> None:
    net, plain = start({})
    train(net, plain, 0, 3)
    twin, optimizer = start({"rounding": "kahan"})
    state = plain.state_dict()
    for group in state["param_groups"]:
        del group["rounding"]
    optimizer.load_state_dict(state)
    twin.load_state_dict(net.state_dict())
    assert [group["rounding"] for group in optimizer.param_groups] == ["kahan"] * 2
    train(net, plain, 3, 4)
    train(twin, optimizer, 3, 4)
    for ours, theirs in zip(twin.parameters(), net.parameters(), strict=True):
        assert torch.equal(ours, theirs)  # With nothing to make up for, the first step is a plain one.
        assert bool(optimizer.state[ours]["compensation"].any())


def test_a_compensation_of_another_shape_is_refused() -> None:
    net, optimizer = start({"rounding": "kahan"})
    train(net, optimizer, 0, 2)
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][1]["compensation"] = torch.zeros(7)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(ValueError, match=r"'compensation' is \(7,\) for a parameter of the shape \(4,\)"):
        optimizer.load_state_dict(state)
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(before[key][name], after[key][name]) for key in before for name in before[key])


@every_foreach
def test_a_model_may_change_its_dtype_between_steps(foreach: bool) -> None:
    net, optimizer = start({"rounding": "kahan", "lr": 1e-4, "foreach": foreach})
    for step, dtype in enumerate((torch.bfloat16, torch.float16, torch.float32, torch.bfloat16)):
        net.to(dtype)
        train(net, optimizer, 4 * step, 4 * step + 4)
        weight = net[0].weight
        assert weight.dtype == dtype
        rest = optimizer.state[weight]["compensation"]
        assert rest.dtype == (torch.float16 if dtype == torch.float32 else dtype)
        assert bool(rest.isfinite().all())
        # The unchanged parameter is not passed on.
        has_rest = "compensation/weight" in emo_torch.to_arrays(optimizer, named(net))
        assert has_rest == (dtype != torch.float32)


def named(net: Any) -> list[tuple[str, Tensor]]:
    first = ("weight" if name == "0.weight" else name for name, _ in net.named_parameters())
    return list(zip(first, net.parameters(), strict=True))
