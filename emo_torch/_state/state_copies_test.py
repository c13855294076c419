"""Copies of optimizers, and states in the form of torch.distributed."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import emo_torch
from emo_torch._state.state_test import FAMILY, assert_same, assert_twins, groups, model, train


@pytest.fixture(params=FAMILY, ids=lambda cls: str(cls.__name__))
def cls(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=[False, True], ids=["single", "foreach"])
def foreach(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


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
