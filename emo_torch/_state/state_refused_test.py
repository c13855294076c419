"""The states that are refused, and the arguments of hooks around loading."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import emo_torch
from emo_torch._members.by_name import MEMBERS
from emo_torch._state.state_test import FAMILY, assert_same, groups, model, through_a_file, train
from emo_torch._step.loss_memory import MEMORY_KINDS


@pytest.fixture(params=FAMILY, ids=lambda cls: str(cls.__name__))
def cls(request: pytest.FixtureRequest) -> Any:
    return request.param


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


def _stepped(name: str) -> tuple[Any, Any]:
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimizer: Any = emo_torch.create_optimizer(name, [weight])
    weight.grad = torch.ones(3, 2)
    optimizer.step(loss=1.0)
    return weight, optimizer


@pytest.mark.parametrize("loader", MEMBERS)
def test_a_state_with_another_kind_of_memory_is_refused_also_without_moments(loader: str) -> None:
    """EmoVoid, EmoAiry3 and EmoFact36 have no moments by which their states could be told apart."""
    _, loaded = _stepped(loader)
    kept = copy.deepcopy(loaded.state_dict())
    for saver in MEMBERS:
        _, saved = _stepped(saver)
        if saved.memory_title == loaded.memory_title:
            continue
        with pytest.raises(ValueError, match=f"another kind of optimizer's.*{type(loaded).__name__}"):
            loaded.load_state_dict(saved.state_dict())
        assert_same(loaded.state_dict(), kept)


def test_every_kind_of_memory_is_known() -> None:
    assert {_stepped(name)[1].memory_title for name in MEMBERS} == set(MEMORY_KINDS)


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
