"""The member that saved a state: the state of another member is refused, also without moments."""

import copy
from typing import Any

import pytest
import torch

import emo_torch
from emo_torch._members.by_name import MEMBERS
from emo_torch._state.state_test import assert_same, through_a_file
from emo_torch._step.loss_memory import MEMBER


def _optimizer(name: str, *, is_stepped: bool = True) -> Any:
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimizer: Any = emo_torch.create_optimizer(name, [weight])
    weight.grad = torch.ones(3, 2)
    if is_stepped:
        optimizer.step(loss=1.0)
    return optimizer


def _can_exchange(ours: Any, theirs: Any) -> bool:
    return bool(ours.rule == theirs.rule and set(ours.memory_names()) == set(theirs.memory_names()))


@pytest.mark.parametrize("is_stepped", [True, False], ids=["with state", "before the first step"])
@pytest.mark.parametrize("loader", MEMBERS)
def test_the_state_of_another_member_is_refused_by_name(loader: str, is_stepped: bool) -> None:
    loaded = _optimizer(loader)
    before = copy.deepcopy(loaded.state_dict())
    for saver in MEMBERS:
        saved = _optimizer(saver, is_stepped=is_stepped)
        if saved.rule == loaded.rule:
            continue
        names = f"{type(saved).__name__} saved it, and {type(loaded).__name__} has another rule"
        with pytest.raises(ValueError, match=f"another kind of optimizer's: {names}"):
            loaded.load_state_dict(through_a_file(saved.state_dict()))
        assert_same(loaded.state_dict(), before)


@pytest.mark.parametrize("loader", MEMBERS)
def test_members_with_one_rule_and_another_memory_are_refused_without_the_name_too(loader: str) -> None:
    loaded = _optimizer(loader)
    for saver in MEMBERS:
        saved = _optimizer(saver)
        if saved.rule != loaded.rule or _can_exchange(saved, loaded):
            continue
        for names in ({}, {MEMBER: saved.state_dict()[MEMBER]}):
            state = {name: saved.state_dict()[name] for name in ("state", "param_groups")}
            with pytest.raises(ValueError, match=r"another kind of optimizer's|lacks a part of the"):
                loaded.load_state_dict({**state, **names})


@pytest.mark.parametrize("pair", ["emo_sens emo_navi", "emo_airy emo_fact", "emo_cats emo_lynx"])
def test_members_with_one_rule_and_one_memory_load_each_other(pair: str) -> None:
    for loader, saver in (pair.split(), pair.split()[::-1]):
        loaded, saved = _optimizer(loader), _optimizer(saver)
        loaded.load_state_dict(saved.state_dict())
        assert_same(loaded.state_dict()["state"], saved.state_dict()["state"])


@pytest.mark.parametrize("name", MEMBERS)
def test_a_state_of_an_earlier_release_without_the_name_is_loaded(name: str) -> None:
    loaded, saved = _optimizer(name, is_stepped=False), _optimizer(name).state_dict()
    loaded.load_state_dict({key: saved[key] for key in ("state", "param_groups")})
    assert_same(loaded.state_dict(), saved)


def test_a_damaged_name_is_refused() -> None:
    loaded = _optimizer("emo_sens")
    with pytest.raises(ValueError, match="damaged: 'emo_member'"):
        loaded.load_state_dict({**loaded.state_dict(), MEMBER: "EmoSens"})


@pytest.mark.parametrize("wrap", [emo_torch.Emotional, emo_torch.Autopilot], ids=lambda wrap: wrap.__name__)
def test_a_wrapper_around_an_optimizer_of_pytorch_refuses_the_state_of_a_member(wrap: Any) -> None:
    saved = _optimizer("emo_sens").state_dict()
    weight = torch.nn.Parameter(torch.ones(3, 2))
    loaded = wrap(torch.optim.AdamW([weight]))
    before = copy.deepcopy(loaded.state_dict())
    with pytest.raises(ValueError, match="EmoSens saved it, and AdamW has another rule"):
        loaded.load_state_dict(saved)
    assert_same(loaded.state_dict(), before)


def test_a_member_in_a_wrapper_loads_its_own_state_and_no_other() -> None:
    def wrapped(name: str) -> Any:
        return emo_torch.Autopilot(_optimizer(name))

    state = wrapped("emo_cats3").state_dict()
    assert state[MEMBER] == {"name": "EmoCats3", "rule": "lion"}
    wrapped("emo_cats3").load_state_dict(state)
    with pytest.raises(ValueError, match="EmoCats3 saved it, and EmoTion has another rule"):
        wrapped("emo_tion").load_state_dict(state)
