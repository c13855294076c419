"""What survives being saved, copied and loaded."""

import copy
import io
import json
import pickle
import random
import warnings
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import emo_torch
from emo_shared import header
from emo_shared.files import read_file, write_file
from emo_shared.files_test import Bomb

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
    """Takes the steps from `first` to `last`, the same ones whoever takes them."""
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


def _sgd(params: Any) -> Any:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


OTHERS: list[tuple[Any, Any]] = [
    *((_sgd, cls) for cls in FAMILY),
    *((ours, theirs) for ours in FAMILY for theirs in FAMILY if ours is not theirs),
    (torch.optim.AdamW, emo_torch.EmoAiry),
    (torch.optim.AdamW, emo_torch.EmoCats),
]


@pytest.mark.parametrize(("saver", "loader"), OTHERS, ids=lambda cls: cls.__name__)
def test_the_state_of_another_kind_is_refused_before_anything_is_changed(saver: Any, loader: Any) -> None:
    net, twin = model(), model()
    saved, loaded = saver(net.parameters()), loader(twin.parameters(), use_shadow=True)
    train(net, saved, 0, 3)
    train(twin, loaded, 0, 3)
    kept = copy.deepcopy(loaded.state_dict())
    with pytest.raises(ValueError, match=f"another kind of optimizer's.*{loader.__name__}"):
        loaded.load_state_dict(saved.state_dict())
    assert_same(loaded.state_dict(), kept)


def _drop_one(state: dict[str, Any]) -> None:
    del state["param_groups"][1]["emotion_history_07"]


def _drop_all_but_one(state: dict[str, Any]) -> None:
    for name in [name for name in state["param_groups"][0] if name.startswith("emotion_")][1:]:
        del state["param_groups"][0][name]


def _transpose(state: dict[str, Any]) -> None:
    name = "column" if "column" in state["state"][0] else "exp_avg"
    state["state"][0][name] = torch.zeros(7, 7)


def _shrink_the_shadow(state: dict[str, Any]) -> None:
    state["state"][0]["shadow"] = torch.zeros(1)


def _drop_a_moment(state: dict[str, Any]) -> None:
    del state["state"][0]["column" if "column" in state["state"][0] else "exp_avg"]


def _drop_a_group(state: dict[str, Any]) -> None:
    del state["param_groups"][1]


def _drop_a_parameter(state: dict[str, Any]) -> None:
    del state["param_groups"][0]["params"][0]


def _drop_the_flag(state: dict[str, Any]) -> None:
    del state["state"][0]["shadow_exists"]


def _drop_the_emotion_of_the_first_group_only(state: dict[str, Any]) -> None:
    for name in [name for name in state["param_groups"][0] if name.startswith("emotion_")]:
        del state["param_groups"][0][name]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop_one, "lacks a part of the emotion: emotion_history_07"),
        (_drop_all_but_one, "lacks a part of the emotion"),
        (_drop_the_emotion_of_the_first_group_only, "lacks a part of the emotion"),
        (_transpose, r"other shapes.*\(7, 7\)"),
        (_shrink_the_shadow, r"other shapes.*'shadow' is \(1,\)"),
        (_drop_a_moment, "another kind of optimizer's"),
        (_drop_the_flag, "shadow_exists"),
        (_drop_a_group, "different number of parameter groups"),
        (_drop_a_parameter, "doesn't match the size of optimizer's group|other shapes"),
    ],
)
def test_a_damaged_state_is_refused_before_anything_is_changed(
    cls: Any, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    net, twin = model(), model()
    saved, loaded = cls(groups(net), use_shadow=True), cls(groups(twin), use_shadow=True)
    train(net, saved, 0, 5)
    train(twin, loaded, 0, 2)
    state = through_a_file(saved.state_dict())
    damage(state)
    kept = copy.deepcopy(loaded.state_dict())
    with pytest.raises(ValueError, match=message):
        loaded.load_state_dict(state)
    assert_same(loaded.state_dict(), kept)


def test_a_state_of_fewer_parameters_with_a_gradient_is_fine(cls: Any) -> None:
    net, twin = model(), model()
    saved, loaded = cls(net.parameters()), cls(twin.parameters())
    first = next(net.parameters())
    first.grad = torch.ones_like(first)
    saved.step(loss=1.0)
    loaded.load_state_dict(through_a_file(saved.state_dict()))
    train(twin, loaded)
    assert len(loaded.state) == 4


# Hooks around loading.


def test_hooks_around_loading_fire_and_may_change_the_state(cls: Any) -> None:
    net = model()
    saved = cls(groups(net))
    train(net, saved, 0, 3)
    loaded = cls(groups(model()))
    calls = []

    def before(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        calls.append("before")
        groups = [{**group, "lr": 0.5} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    loaded.register_load_state_dict_pre_hook(before)
    loaded.register_load_state_dict_post_hook(lambda _: calls.append("after"))
    loaded.load_state_dict(saved.state_dict())
    loaded.load_state_dict(saved.state_dict())
    assert calls == ["before", "after"] * 2
    assert [group["lr"] for group in loaded.param_groups] == [0.5, 0.5]
    assert loaded.emotion == saved.emotion


def test_a_hook_after_loading_sees_the_state_as_it_will_be() -> None:
    net = model(torch.bfloat16)
    saved, loaded = (
        emo_torch.EmoSens(net.parameters()),
        emo_torch.EmoSens(model(torch.bfloat16).parameters()),
    )
    train(net, saved, 0, 2)
    seen: list[torch.dtype] = []
    loaded.register_load_state_dict_post_hook(
        lambda optimizer: seen.extend(state["exp_avg"].dtype for state in optimizer.state.values())
    )
    loaded.load_state_dict(saved.state_dict())
    assert set(seen) == {torch.float32}


def test_a_hook_may_repair_a_state_before_it_is_looked_at() -> None:
    net = model()
    saved, loaded = emo_torch.EmoSens(net.parameters()), emo_torch.EmoSens(model().parameters())
    train(net, saved, 0, 3)
    state = saved.state_dict()
    history = {f"emotion_history_{index:02d}" for index in range(32)}
    kept = dict(state["param_groups"][0])
    for name in history:
        del state["param_groups"][0][name]
    loaded.register_load_state_dict_pre_hook(
        lambda _, state: {**state, "param_groups": [kept]},
    )
    loaded.load_state_dict(state)
    assert loaded.emotion == saved.emotion


def test_a_state_that_was_refused_leaves_no_hook_behind() -> None:
    optimizer = emo_torch.EmoSens(model().parameters())
    hooks = len(optimizer._optimizer_load_state_dict_pre_hooks)
    with pytest.raises(ValueError, match="parameter groups"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    optimizer.load_state_dict(optimizer.state_dict())
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == hooks


# Copies.


def _pickled(pair: Any) -> Any:
    return pickle.loads(pickle.dumps(pair))


@pytest.mark.parametrize("make_copy", [copy.deepcopy, _pickled], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("steps", [0, 5])
def test_a_copy_of_model_and_optimizer_goes_on_by_itself(
    cls: Any, foreach: bool, steps: int, make_copy: Callable[[Any], Any]
) -> None:
    net = model()
    optimizer = cls(groups(net), use_shadow=True, foreach=foreach)
    train(net, optimizer, 0, steps)
    twin, copied = make_copy((net, optimizer))
    assert type(copied) is cls
    assert_twins(twin, copied, net, optimizer)
    train(net, optimizer, steps)
    assert copied.emotion.felt.item() == (steps if steps == 0 else steps - 1)
    train(twin, copied, steps)
    assert_twins(twin, copied, net, optimizer)
    shared = copied.param_groups[0]["emotion_short"]
    assert shared is copied.param_groups[1]["emotion_short"]
    copied.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    copied.load_state_dict(copied.state_dict())


def test_a_copy_keeps_its_shadow_function() -> None:
    net = model()
    optimizer = emo_torch.EmoSens(net.parameters(), use_shadow=True, shadow_ratio=torch.abs)
    train(net, optimizer, 0, 4)
    for make_copy in (copy.deepcopy, _pickled):
        twin, copied = make_copy((net, optimizer))
        train(twin, copied, 4, 6)
        assert copied.emotion.shadow_ratio == copied.emotion.scalar.abs()


def test_a_copy_has_the_public_attributes_of_the_original(cls: Any) -> None:
    optimizer = cls(model().parameters())

    def public(thing: object) -> set[str]:
        return {name for name in dir(thing) if not name.startswith("_")}

    assert public(copy.deepcopy(optimizer)) == public(optimizer)


# Distributed checkpoints, in one process.


@pytest.fixture(params=[False, True], ids=["nested", "flat"])
def layout(request: pytest.FixtureRequest) -> StateDictOptions:
    return StateDictOptions(flatten_optimizer_state_dict=request.param)


@pytest.mark.parametrize("fresh", [False, True], ids=["used", "fresh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_distributed_state_is_taken_and_given_back(
    cls: Any, layout: StateDictOptions, dtype: torch.dtype, fresh: bool
) -> None:
    net, twin = model(dtype), model(dtype)
    ours, theirs = cls(groups(net), use_shadow=True), cls(groups(twin), use_shadow=True)
    train(net, ours, 0, 6)
    if not fresh:
        train(twin, theirs, 0, 2)
    state = copy.deepcopy(get_optimizer_state_dict(net, ours, options=layout))
    twin.load_state_dict(net.state_dict())
    set_optimizer_state_dict(twin, theirs, state, options=layout)
    assert_twins(twin, theirs, net, ours)
    train(net, ours, 6)
    train(twin, theirs, 6)
    assert_twins(twin, theirs, net, ours)


def test_asking_for_a_distributed_state_changes_nothing(cls: Any, layout: StateDictOptions) -> None:
    net, untouched = model(), model()
    optimizer = cls(groups(net), use_shadow=True)
    fresh, rates = optimizer.emotion, [group["lr"] for group in optimizer.param_groups]
    get_optimizer_state_dict(net, optimizer, options=layout)
    assert_same(list(net.parameters()), list(untouched.parameters()))
    assert optimizer.emotion == fresh
    assert [group["lr"] for group in optimizer.param_groups] == rates
    assert len(optimizer.state) == 4


def test_an_optimizer_that_was_loaded_or_copied_before_takes_a_distributed_state_too(
    cls: Any, layout: StateDictOptions
) -> None:
    net, twin = model(), model()
    ours, theirs = cls(groups(net)), cls(groups(twin))
    train(net, ours, 0, 4)
    theirs.load_state_dict(theirs.state_dict())
    set_optimizer_state_dict(
        twin, theirs, copy.deepcopy(get_optimizer_state_dict(net, ours, options=layout)), options=layout
    )
    assert theirs.emotion == ours.emotion


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_on_disk_goes_on_as_if_uninterrupted(
    cls: Any, layout: StateDictOptions, dtype: torch.dtype, tmp_path: Path
) -> None:
    net, twin = model(dtype), model(dtype)
    ours, theirs = cls(groups(net), use_shadow=True), cls(groups(twin), use_shadow=True)
    train(net, ours, 0, 6)
    state = {"model": net.state_dict(), "optimizer": get_optimizer_state_dict(net, ours, options=layout)}
    save(state, checkpoint_id=tmp_path, no_dist=True)
    blank: dict[str, Any] = {
        "model": twin.state_dict(),
        "optimizer": get_optimizer_state_dict(twin, theirs, options=layout),
    }
    load(blank, checkpoint_id=tmp_path, no_dist=True)
    twin.load_state_dict(blank["model"])
    set_optimizer_state_dict(twin, theirs, blank["optimizer"], options=layout)
    train(net, ours, 6)
    train(twin, theirs, 6)
    assert_twins(twin, theirs, net, ours)


# Checkpoint files.

OPTIMIZERS: dict[str, Any] = {
    "emo_sens": lambda params: emo_torch.EmoSens(params, lr=torch.tensor(0.1), use_shadow=True),
    "emo_airy": lambda params: emo_torch.EmoAiry(params, rounding="stochastic"),
    "emo_cats": lambda params: emo_torch.EmoCats(params, moment_dtype=torch.bfloat16),
    "emo_navi": emo_torch.EmoNavi,
    "emo_fact": emo_torch.EmoFact,
    "emo_lynx": emo_torch.EmoLynx,
    "emo_clan": emo_torch.EmoClan,
    "emo_neco": lambda params: emo_torch.EmoNeco(params, rounding="kahan"),
    "emo_zeal": emo_torch.EmoZeal,
    "emotional": lambda params: emo_torch.Emotional(torch.optim.AdamW(params, lr=0.1), use_shadow=True),
}


def begin(name: str) -> tuple[torch.nn.Module, Any]:
    """A model, of a narrow and a wide layer, and its optimizer with two groups."""
    net = model()
    next(net.children()).to(torch.bfloat16)
    return net, OPTIMIZERS[name](groups(net))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_in_a_checkpoint_goes_on_as_if_it_had_not_been_broken_off(name: str, tmp_path: Path) -> None:
    net, optimizer = begin(name)
    train(net, optimizer, 0, 5)
    run = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": 5}
    emo_torch.save_checkpoint(tmp_path / "run", run)
    loaded = emo_torch.load_checkpoint(tmp_path / "run")
    assert_same(loaded, run)
    twin, resumed = begin(name)
    twin.load_state_dict(loaded["model"])
    resumed.load_state_dict(loaded["optimizer"])
    train(net, optimizer, 5)
    train(twin, resumed, loaded["step"])
    assert_twins(twin, resumed, net, optimizer)


def bits(tree: Any) -> Any:
    """Tensors as their dtypes, shapes, strides and bytes, which equal themselves where NaN does not."""
    if isinstance(tree, Tensor):
        flat = tree.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8)
        return tree.dtype, tree.shape, tree.stride(), flat.tolist()
    if isinstance(tree, dict):
        return type(tree), {key: bits(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree), [bits(value) for value in tree]
    return type(tree), repr(tree)


def test_every_kind_of_leaf_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    some = torch.arange(256, dtype=torch.uint8)
    image = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    names = ("bool", "int8", "uint16", "int32", "int64", "float16", "float8_e4m3fn", "float8_e5m2")
    tree: dict[Any, Any] = {name: (some % 2).to(getattr(torch, name)) for name in names}
    tree["nan"] = torch.tensor(0x7FC12345, dtype=torch.int32).view(torch.float32)
    tree["all of bfloat16"] = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    tree["conjugate"] = torch.tensor([1 + 2j]).conj()
    tree["a/b"], tree["a"], tree["__metadata__"] = torch.ones(1), {"b": torch.zeros(1)}, torch.ones(2)
    tree["channels last"] = image.to(memory_format=torch.channels_last)
    tree["strided"] = torch.arange(4.0)
    tree["numbers"] = [True, 2**100, -0.0, 1e-300, float("inf"), float("nan"), None, "ë\udc80", (), [], {}]
    tree["keys"] = {0: "a", "0": "b", 1.5: "c", None: "d", False + 2: (1, (2, [3]))}
    tree["dtype"], tree["counts"] = torch.bfloat16, Counter({3: 2})
    tree["random"], tree["Python's"] = torch.get_rng_state(), random.getstate()
    tree["empty"] = [torch.zeros(0, 3), torch.zeros(())]
    tree["ordered"] = OrderedDict(z=1, a=torch.ones(1))
    trees: list[Any] = [tree, torch.ones(2), [], None, 1.5]
    for each in trees:
        emo_torch.save_checkpoint(tmp_path / "run", each)
        assert bits(emo_torch.load_checkpoint(tmp_path / "run")) == bits(each)
    emo_torch.save_checkpoint(
        tmp_path / "run", {"every other": torch.arange(8.0)[::2], "f": np.float64(0.1)}
    )
    loaded = emo_torch.load_checkpoint(tmp_path / "run")
    assert loaded["every other"].tolist() == [0.0, 2.0, 4.0, 6.0]
    assert (type(loaded["f"]), loaded["f"]) == (float, 0.1)


def test_tensors_that_are_one_and_the_same_are_so_again(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    tied = [weight, weight.detach(), weight.T, weight[0], weight.clone(), torch.zeros(0), torch.zeros(0)]
    emo_torch.save_checkpoint(tmp_path / "run", tied)
    assert len(load_file(tmp_path / "run")) == 6
    loaded = emo_torch.load_checkpoint(tmp_path / "run")
    assert_same(loaded, [tensor.detach() for tensor in tied])
    assert loaded[0] is loaded[1]
    loaded[0].fill_(7.0)
    assert_same(loaded[2:], [tensor.detach() for tensor in tied[2:]])


def test_the_versions_of_modules_survive(tmp_path: Path) -> None:
    net = torch.nn.BatchNorm1d(2)
    state = net.state_dict()
    emo_torch.save_checkpoint(tmp_path / "run", state)
    loaded = emo_torch.load_checkpoint(tmp_path / "run")
    assert loaded._metadata == state._metadata  # type: ignore[attr-defined]
    assert loaded._metadata[""]["version"] == 2


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.9**step),
    "MultiStepLR": lambda opt: torch.optim.lr_scheduler.MultiStepLR(opt, [2, 3, 3]),
    "ReduceLROnPlateau": lambda opt: torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=0),
    "OneCycleLR": lambda opt: torch.optim.lr_scheduler.OneCycleLR(opt, 0.5, 20, cycle_momentum=False),
    "CyclicLR": lambda opt: torch.optim.lr_scheduler.CyclicLR(opt, 0.1, 0.5, 3, cycle_momentum=False),
    "CosineAnnealingWarmRestarts": lambda opt: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(opt, 3),
    "SequentialLR": lambda opt: torch.optim.lr_scheduler.SequentialLR(
        opt,
        [torch.optim.lr_scheduler.ConstantLR(opt), torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)],
        [2],
    ),
    "SWALR": lambda opt: torch.optim.swa_utils.SWALR(opt, 0.3),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_go_on_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    def make() -> tuple[Any, Any]:
        optimizer = emo_torch.EmoSens(groups(model()), lr=0.1)
        return optimizer, SCHEDULERS[name](optimizer)

    def go(optimizer: Any, scheduler: Any) -> list[float]:
        rates = []
        for step in range(4):
            optimizer.step(loss=1.0 + step)
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            with warnings.catch_warnings():  # SequentialLR itself calls what it warns of.
                warnings.simplefilter("ignore")
                scheduler.step(*([1.0] if plateau else []))
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    optimizer, scheduler = make()
    go(optimizer, scheduler)
    run = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    emo_torch.save_checkpoint(tmp_path / "run", run)
    loaded = emo_torch.load_checkpoint(tmp_path / "run")
    resumed, again = make()
    resumed.load_state_dict(loaded["optimizer"])
    again.load_state_dict(loaded["scheduler"])
    assert go(resumed, again) == go(optimizer, scheduler)


def test_a_gradient_scaler_goes_through_a_checkpoint(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    emo_torch.save_checkpoint(tmp_path / "run", scaler.state_dict())
    assert emo_torch.load_checkpoint(tmp_path / "run") == scaler.state_dict()


# Checkpoint files that are refused.


@pytest.mark.parametrize(
    ("leaf", "error", "message"),
    [
        (np.ones(2), TypeError, "'a/0' is of the type ndarray"),
        (np.float32(1.0), TypeError, "'a/0' is of the type float32"),
        (defaultdict(int), TypeError, "'a/0' is of the type defaultdict"),
        (b"bytes", TypeError, "'a/0' is of the type bytes"),
        (print, TypeError, "'a/0' is of the type builtin_function_or_method"),
        (emo_torch.EmotionState(*(torch.ones(7))), TypeError, "'a/0' is of the type EmotionState"),
        ({torch.ones(1): 1}, TypeError, "of the type Tensor"),
        (torch.ones(2, dtype=torch.complex128), ValueError, "'a/0' has the dtype complex128"),
        (torch.ones(2, device="meta"), ValueError, "'a/0' has .* the device meta"),
        (torch.ones(2).to_sparse(), ValueError, "'a/0' has .* the layout torch.sparse_coo"),
    ],
)
def test_a_leaf_that_has_no_place_is_refused_before_anything_is_written(
    leaf: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        emo_torch.save_checkpoint(tmp_path / "run", {"a": [leaf]})
    assert not list(tmp_path.iterdir())


def refused(path: Path, good: Any, bad: Any, error: type[Exception], message: str) -> None:
    """Asserts that a tree is refused over a good checkpoint, which stays alone in its folder."""
    emo_torch.save_checkpoint(path, good)
    whole = path.read_bytes()
    with pytest.raises(error, match=message):
        emo_torch.save_checkpoint(path, bad)
    assert path.read_bytes() == whole
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def nested(levels: int) -> Any:
    tree: Any = torch.ones(1)
    for level in range(levels):
        tree = ([tree], (tree,), {"x": tree})[level % 3]
    return tree


@pytest.mark.parametrize(
    ("tree", "error", "message"),
    [
        ({"a\ud800": torch.ones(1)}, ValueError, r"name of an array holds '\\ud800'.*no UTF-8"),
        (nested(101), ValueError, "at most 100 levels"),
        ({"n": 10**5000}, ValueError, "'n' is an integer of 16610 bits.*hex"),
        ({"x": torch.empty((0, 2**40, 2**20)), "y": torch.empty((2**33, 0))}, None, ""),
    ],
)
def test_a_tree_that_could_not_be_loaded_replaces_nothing(
    tree: Any, error: type[Exception] | None, message: str, tmp_path: Path
) -> None:
    if error is not None:
        refused(tmp_path / "run", {"good": 1}, tree, error, message)
        return
    emo_torch.save_checkpoint(tmp_path / "run", tree)
    assert_same(emo_torch.load_checkpoint(tmp_path / "run"), tree)


def test_a_tree_that_holds_itself_replaces_nothing(tmp_path: Path) -> None:
    tree: list[Any] = []
    tree.append(tree)
    refused(tmp_path / "run", {"good": 1}, tree, ValueError, "or holds itself")


def test_a_long_list_of_numbers_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "LONGEST", 1000)
    refused(
        tmp_path / "run", {"good": 1}, {"order": list(range(1000))}, ValueError, "allows 1000.*as arrays"
    )


def test_all_that_can_be_saved_can_be_loaded_deep_in_a_call_stack(tmp_path: Path) -> None:
    tree = {"tree": nested(99), "n": 2**13_999, "odd": {"\ud800": "\udfff"}, "": {"": torch.ones(1)}}
    emo_torch.save_checkpoint(tmp_path / "run", tree)

    def deep(levels: int) -> Any:
        return deep(levels - 1) if levels else emo_torch.load_checkpoint(tmp_path / "run")

    assert_same(deep(400), tree)


def rewrite(path: Path, **changes: str | None) -> None:
    """Changes what a file says of itself, with a digest that fits."""
    metadata, parts = read_file(path)
    told = {**metadata, **changes}
    write_file(path, {name: text for name, text in told.items() if text is not None}, parts.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"version": "0"},
            r"has the layout 0, written by emo_torch 0\.1\.0; this release reads the layout 1",
        ),
        ({"version": "2"}, "has the layout 2.*Load it with that release, save_arrays of to_arrays"),
        ({"version": None}, "has the layout None"),
        ({"format": "emo_optax checkpoint"}, "no checkpoint of emo_torch, but emo_optax checkpoint"),
        ({"format": None}, "no checkpoint of emo_torch, but a file of another origin"),
        ({"tree": '{"tensor": "y"}'}, "lacks the tensor 'y'"),
    ],
)
def test_another_layout_is_refused_and_says_what_to_do(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    emo_torch.save_checkpoint(path, {"x": torch.ones(2)})
    rewrite(path)
    emo_torch.load_checkpoint(path)
    rewrite(path, **changes)
    with pytest.raises(emo_torch.CheckpointError, match=message):
        emo_torch.load_checkpoint(path)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    emo_torch.save_arrays(tmp_path / "arrays", {"x": np.ones(2)})
    with pytest.raises(emo_torch.CheckpointError, match="read it with load_arrays"):
        emo_torch.load_checkpoint(tmp_path / "arrays")
    save_file({"x": torch.ones(2)}, tmp_path / "foreign")
    with pytest.raises(emo_torch.CheckpointError, match="a file of another origin"):
        emo_torch.load_checkpoint(tmp_path / "foreign")
    with pytest.raises(FileNotFoundError):
        emo_torch.load_checkpoint(tmp_path / "none")


def test_a_checkpoint_that_was_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    emo_torch.save_checkpoint(path, {"w": torch.ones(2, 3), "n": 7})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(emo_torch.CheckpointError, match="cut off or altered"):
            emo_torch.load_checkpoint(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(emo_torch.CheckpointError, match="cut off or altered"):
        emo_torch.load_checkpoint(path)


def test_a_checkpoint_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path, chance, refused = tmp_path / "run", random.Random(0), 0
    net, optimizer = begin("emo_cats")
    train(net, optimizer, 0, 2)
    run = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": 2}
    emo_torch.save_checkpoint(path, run)
    whole = path.read_bytes()
    for index in chance.sample(range(len(whole)), 400):
        damaged = bytearray(whole)
        damaged[index] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = emo_torch.load_checkpoint(path)
        except emo_torch.CheckpointError:
            refused += 1
        else:
            assert_same(loaded, run)
    assert refused > 390


# No code.


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "run", tmp_path / "trace"
    for protocol in (2, 5):
        path.write_bytes(pickle.dumps({"x": Bomb(trace)}, protocol=protocol))
        with pytest.raises(emo_torch.CheckpointError, match="cut off or altered"):
            emo_torch.load_checkpoint(path)
    torch.save({"x": Bomb(trace)}, path)
    with pytest.raises(emo_torch.CheckpointError, match="cut off or altered"):
        emo_torch.load_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(path, weights_only=True)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # It was a bomb.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_everything_that_is_saved_is_plain_tensors_and_json(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    net, optimizer = begin(name)
    train(net, optimizer, 0, 3)
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
    assert_same(through_a_file(state), state)  # As `torch.save` writes it, too.
    emo_torch.save_checkpoint(path, state)
    assert_same(load_file(path)["model/0.weight"], net.state_dict()["0.weight"])
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    json.loads(metadata["tree"])
    assert metadata.keys() == {"format", "version", "release", "tree", "sha256"}
