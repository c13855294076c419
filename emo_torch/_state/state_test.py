"""The parts of an optimizer that `state_dict` and `load_state_dict` keep."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch

FAMILY: list[Any] = [emo_torch.EmoSens, emo_torch.EmoAiry, emo_torch.EmoCats]
LOSSES = [1.0, 1.3, 0.8, 2.5, float("nan"), 0.7, 1.1, 9.0, 1.0, 1.2]


@pytest.fixture(params=FAMILY, ids=lambda cls: str(cls.__name__))
def cls(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=[False, True], ids=["single", "foreach"])
def foreach(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def model(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).to(dtype)


def groups(net: torch.nn.Module) -> list[dict[str, Any]]:
    """The weights and the biases of a model, under options of their own."""
    params = list(net.parameters())
    return [{"params": params[::2], "lr": 0.05}, {"params": params[1::2], "weight_decay": 0.3}]


def train(net: torch.nn.Module, optimizer: Any, first: int = 0, last: int = len(LOSSES)) -> None:
    """Takes the steps from `first` to `last`, the same steps for every caller."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for param in net.parameters():
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        if isinstance(optimizer, emo_torch.EmoOptimizer):
            optimizer.step(loss=LOSSES[step])
        else:
            optimizer.step()


def through_a_file(saved: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same(ours: Any, theirs: Any) -> None:
    """Compares nested states to the last bit, and in their dtypes."""
    if isinstance(ours, Tensor):
        assert isinstance(theirs, Tensor)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    else:
        assert ours == theirs


def assert_twins(net: torch.nn.Module, ours: Any, twin: torch.nn.Module, theirs: Any) -> None:
    assert_same(list(net.parameters()), list(twin.parameters()))
    assert_same(ours.state_dict()["state"], theirs.state_dict()["state"])
    assert_same(tuple(ours.emotion), tuple(theirs.emotion))
    assert ours.should_stop == theirs.should_stop
    for group, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        for name in group.keys() & other.keys() - {"params"}:
            assert_same(group[name], other[name])


# Files.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("use_shadow", [False, True], ids=["plain", "shadow"])
def test_a_run_that_was_broken_off_goes_on_as_if_it_had_not(
    cls: Any, foreach: bool, use_shadow: bool, dtype: torch.dtype
) -> None:
    options = {"foreach": foreach, "use_shadow": use_shadow}
    whole = model(dtype)
    uninterrupted = cls(groups(whole), **options)
    checkpoints = {}
    for step in range(len(LOSSES)):
        if step in (0, 1, 2, 5, 8):
            checkpoints[step] = through_a_file([whole.state_dict(), uninterrupted.state_dict()])
        train(whole, uninterrupted, step, step + 1)
    for step, (params, state) in checkpoints.items():
        net = model(dtype)
        net.load_state_dict(params)
        resumed = cls(groups(net), **options)
        resumed.load_state_dict(state)
        train(net, resumed, step)
        assert_twins(net, resumed, whole, uninterrupted)


def test_the_signal_to_stop_survives_a_file() -> None:
    net, twin = model(), model()
    ours, theirs = emo_torch.EmoSens(net.parameters()), emo_torch.EmoSens(twin.parameters())
    for step in range(40):
        ours.step(loss=1.0)
        if step == 30:
            theirs.load_state_dict(through_a_file(ours.state_dict()))
            assert not theirs.should_stop
    theirs.step(loss=1.0)
    assert theirs.should_stop
    late = emo_torch.EmoSens(model().parameters())
    late.load_state_dict(through_a_file(ours.state_dict()))
    assert late.should_stop is True


def test_options_come_out_of_the_file_and_not_from_the_constructor(cls: Any) -> None:
    net = model()
    saved = cls(net.parameters(), lr=0.25, theta=0.5, use_shadow=True, shadow_ratio="v1.0", gain=2.0)
    train(net, saved, 0, 3)
    twin = model()
    loaded = cls(twin.parameters())
    loaded.load_state_dict(through_a_file(saved.state_dict()))
    twin.load_state_dict(net.state_dict())
    train(net, saved, 3)
    train(twin, loaded, 3)
    assert_twins(net, saved, twin, loaded)


def test_what_decay_is_divided_by_survives_a_file() -> None:
    net, twin = model(), model()
    saved = emo_torch.EmoCats(net.parameters(), lr=1e-2, decoupled_weight_decay=True)
    loaded = emo_torch.EmoCats(twin.parameters(), lr=1e-3)
    train(net, saved, 0, 3)
    loaded.load_state_dict(through_a_file(saved.state_dict()))
    twin.load_state_dict(net.state_dict())
    train(net, saved, 3)
    train(twin, loaded, 3)
    assert_twins(net, saved, twin, loaded)


def test_a_file_is_loaded_safely(cls: Any) -> None:
    net = model()
    optimizer = cls(groups(net), use_shadow=True, lr=torch.tensor(0.1), moment_dtype=torch.bfloat16)
    train(net, optimizer)
    state = optimizer.state_dict()
    assert_same(through_a_file(state), state)


def test_loading_leaves_what_was_given_alone(cls: Any) -> None:
    net = model()
    optimizer = cls(groups(net), use_shadow=True)
    train(net, optimizer)
    state = through_a_file(optimizer.state_dict())
    kept = copy.deepcopy(state)
    other = cls(groups(model()), use_shadow=True)
    other.load_state_dict(state)
    assert_same(state, kept)
    assert state.keys() == kept.keys()


def test_the_emotion_of_a_state_in_memory_is_not_shared_by_those_who_load_it() -> None:
    net, twin = model(), model()
    ours, theirs = emo_torch.EmoSens(net.parameters()), emo_torch.EmoSens(twin.parameters())
    train(net, ours, 0, 3)
    theirs.load_state_dict(ours.state_dict())
    before = ours.emotion
    train(twin, theirs, 3)
    assert ours.emotion == before
    assert theirs.emotion != before


def test_loading_adds_no_option_to_a_group(cls: Any) -> None:
    net = model()
    optimizer = cls(groups(net))
    fresh = [set(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(optimizer.state_dict())
    assert [set(group) for group in optimizer.param_groups] == fresh


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16], ids=str)
def test_wide_states_of_narrow_parameters_stay_wide(cls: Any, narrow: torch.dtype) -> None:
    net = model(narrow)
    optimizer = cls(groups(net), use_shadow=True)
    train(net, optimizer)
    loaded = cls(groups(model(narrow)), use_shadow=True)
    loaded.load_state_dict(through_a_file(optimizer.state_dict()))
    for state in loaded.state.values():
        assert state.pop("shadow_exists").dtype == torch.bool
        assert {value.dtype for value in state.values()} == {torch.float32}


def test_narrow_moments_of_wide_parameters_stay_narrow(cls: Any) -> None:
    net, twin = model(), model()
    options = {"moment_dtype": torch.bfloat16, "use_shadow": True}
    ours, theirs = cls(groups(net), **options), cls(groups(twin), **options)
    train(net, ours, 0, 4)
    theirs.load_state_dict(through_a_file(ours.state_dict()))
    twin.load_state_dict(net.state_dict())
    train(net, ours, 4)
    train(twin, theirs, 4)
    assert_twins(net, ours, twin, theirs)
    for state in theirs.state.values():
        wide = {state.pop("shadow").dtype, state.pop("shadow_exists").dtype}
        assert wide == {torch.float32, torch.bool}
        assert {value.dtype for value in state.values()} == {torch.bfloat16}


@pytest.mark.parametrize("use_shadow", [False, True], ids=["plain", "shadow"])
@pytest.mark.parametrize(
    ("before", "after"),
    [(torch.float32, torch.float64), (torch.float64, torch.float32), (torch.float32, torch.bfloat16)],
    ids=str,
)
def test_a_state_may_be_loaded_for_parameters_of_another_dtype(
    cls: Any, foreach: bool, use_shadow: bool, before: torch.dtype, after: torch.dtype
) -> None:
    net = model(before)
    saved = cls(groups(net), use_shadow=use_shadow, foreach=foreach)
    train(net, saved, 0, 5)
    twin = model(after)
    twin.load_state_dict(net.state_dict())
    loaded = cls(groups(twin), use_shadow=use_shadow, foreach=foreach)
    loaded.load_state_dict(through_a_file(saved.state_dict()))
    train(net, saved, 5)
    train(twin, loaded, 5)
    for ours, theirs in zip(twin.parameters(), net.parameters(), strict=True):
        assert ours.dtype == after
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=0.05, atol=0.02)
    assert loaded.emotion.scalar.dtype == (torch.float64 if after == torch.float64 else torch.float32)


def test_a_shadow_function_is_not_in_the_file_and_has_to_be_given_again() -> None:
    net, twin = model(), model()
    saved = emo_torch.EmoSens(net.parameters(), use_shadow=True, shadow_ratio=torch.abs)
    train(net, saved, 0, 4)
    state = through_a_file(saved.state_dict())
    assert state["param_groups"][0]["shadow_ratio"] == "function"
    without = emo_torch.EmoSens(twin.parameters(), use_shadow=True)
    kept = copy.deepcopy(without.state_dict())
    with pytest.raises(ValueError, match=r"a function for shadow_ratio.*the EmoSens with the same"):
        without.load_state_dict(state)
    assert_same(without.state_dict(), kept)
    twin.load_state_dict(net.state_dict())
    given = emo_torch.EmoSens(twin.parameters(), shadow_ratio=torch.abs)
    given.load_state_dict(state)
    train(net, saved, 4)
    train(twin, given, 4)
    assert_twins(net, saved, twin, given)


def test_a_named_ratio_from_a_file_goes_before_a_function_from_the_constructor() -> None:
    net, twin = model(), model()
    saved = emo_torch.EmoSens(net.parameters(), use_shadow=True, shadow_ratio="v1.0")
    train(net, saved, 0, 4)
    loaded = emo_torch.EmoSens(twin.parameters(), use_shadow=True, shadow_ratio=torch.abs)
    loaded.load_state_dict(through_a_file(saved.state_dict()))
    twin.load_state_dict(net.state_dict())
    train(net, saved, 4)
    train(twin, loaded, 4)
    assert_twins(net, saved, twin, loaded)


# States of other origins.


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("theirs_foreach", [None, True])
def test_the_state_of_adamw_goes_on_under_emosens(
    foreach: bool, amsgrad: bool, theirs_foreach: bool | None
) -> None:
    net = model()
    adamw = torch.optim.AdamW(net.parameters(), lr=0.03, amsgrad=amsgrad, foreach=theirs_foreach)
    train(net, adamw, 0, 4)
    options: dict[str, Any] = {"theta": 0.2, "use_shadow": True, "gain": 3.0, "weight_decay_mode": "l2"}
    optimizer = emo_torch.EmoSens(net.parameters(), lr=1.0, foreach=foreach, **options)
    optimizer.step(loss=1.0)
    emotion = optimizer.emotion
    optimizer.load_state_dict(through_a_file(adamw.state_dict()))
    group = optimizer.param_groups[0]
    assert {name: group[name] for name in options} == options
    assert (group["lr"], group["foreach"]) == (0.03, theirs_foreach)
    assert optimizer.emotion == emotion
    weight = next(net.parameters())
    before, moment = weight.detach().clone(), adamw.state[weight]["exp_avg"]
    assert torch.equal(optimizer.state[weight]["exp_avg"], moment)
    expected = 0.9 * moment
    train(net, optimizer, 5, 6)
    assert weight.grad is not None
    torch.testing.assert_close(
        optimizer.state[weight]["exp_avg"], expected + 0.1 * (weight.grad + 0.01 * before)
    )
    train(net, optimizer, 6)
    assert bool(torch.isfinite(weight).all())
    again = emo_torch.EmoSens(model().parameters(), **options)
    again.load_state_dict(through_a_file(optimizer.state_dict()))


def test_an_older_state_without_an_option_keeps_what_is_here(cls: Any) -> None:
    net = model()
    optimizer = cls(groups(net), theta=0.2, use_shadow=True)
    train(net, optimizer, 0, 3)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["theta"], group["weight_decay_divisor"], group["moment_dtype"]
    loaded = cls(groups(model()), theta=0.7)
    loaded.load_state_dict(state)
    assert [group["theta"] for group in loaded.param_groups] == [0.7, 0.7]
    assert [group["use_shadow"] for group in loaded.param_groups] == [True, True]
    assert loaded.emotion == optimizer.emotion
    train(net, loaded, 3)
