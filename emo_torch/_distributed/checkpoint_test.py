"""Distributed checkpoints: a run goes on in as many processes, in one, and in two again."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import emo_torch
from emo_torch._distributed.processes_test import Place, in_processes
from emo_torch._distributed.training_test import (
    KINDS,
    Net,
    assert_close,
    assert_same_in_all,
    backward,
    everything,
    options_of,
    own_loss,
    own_share,
    sharded,
    train,
    whole,
)

LAYOUTS = {
    "nested": StateDictOptions(),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
}


def write(net: Any, optimizer: Any, folder: Path, options: StateDictOptions, **how: Any) -> None:
    state = {
        "model": get_model_state_dict(net),
        "optimizer": get_optimizer_state_dict(net, optimizer, options=options),
    }
    save(state, checkpoint_id=folder, **how)


def read(net: Any, optimizer: Any, folder: Path, options: StateDictOptions, **how: Any) -> None:
    state: dict[str, Any] = {
        "model": get_model_state_dict(net),
        "optimizer": get_optimizer_state_dict(net, optimizer, options=options),
    }
    load(state, checkpoint_id=folder, **how)
    set_model_state_dict(net, state["model"])
    set_optimizer_state_dict(net, optimizer, state["optimizer"], options=options)


@pytest.mark.parametrize(
    ("name", "layout"),
    [(name, tuple(LAYOUTS)[turn % 2]) for turn, name in enumerate(KINDS)],  # PyTorch changes the layout.
)
@in_processes(2)
def test_a_run_goes_on_from_a_distributed_checkpoint(place: Place, name: str, layout: str) -> None:
    options = options_of(name)
    net, resumed = sharded(place), sharded(place)
    ours, theirs = (
        emo_torch.create_optimizer(name, some.parameters(), **options) for some in (net, resumed)
    )
    train(net, ours, range(6), place)
    write(net, ours, place.folder, LAYOUTS[layout])
    read(resumed, theirs, place.folder, LAYOUTS[layout])
    assert_close(everything(resumed, theirs), everything(net, ours), 0.0)
    for some, optimizer in ((net, ours), (resumed, theirs)):
        train(some, optimizer, range(6, 12), place)
    assert_close(everything(resumed, theirs), everything(net, ours), 0.0)

    # In one process, and from there in two again.
    one = Net()
    alone = emo_torch.create_optimizer(name, one.parameters(), process_group=False, **options)
    read(one, alone, place.folder, LAYOUTS[layout], no_dist=True)
    train(one, alone, range(6, 12), None)
    assert_close(everything(one, alone), everything(net, ours), 2e-5)
    again = sharded(place)
    back = emo_torch.create_optimizer(name, again.parameters(), **options)
    if place.rank == 0:
        write(one, alone, place.folder / "of one", LAYOUTS[layout], no_dist=True)
    dist.barrier()
    read(again, back, place.folder / "of one", LAYOUTS[layout])
    found = everything(again, back)
    assert_same_in_all(found, place)
    assert_close(found, everything(one, alone), 2e-5)


WRAPPERS: dict[str, Any] = {
    "autopilot": lambda inner: emo_torch.Autopilot(inner),
    "autopilot without average": lambda inner: emo_torch.Autopilot(inner, average=False),
    "emotional": lambda inner: emo_torch.Emotional(inner),
    "emotional with shadow": lambda inner: emo_torch.Emotional(inner, use_shadow=True),
}
INNER: dict[str, Any] = {
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2),
    "sgd": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9),
    "emo_pulse": lambda params: emo_torch.EmoSens3(params),
}
PAIRS = [
    (wrapper, inner)
    for wrapper in WRAPPERS
    for inner in INNER
    if not (wrapper.startswith("emotional") and inner == "emo_pulse")
]
"""A member of the family inside of `Emotional` would be emotional twice."""


@in_processes(2)
def test_wrappers_go_on_from_a_distributed_checkpoint(place: Place) -> None:
    for wrapper, inner in PAIRS:
        net, resumed = sharded(place), sharded(place)
        ours, theirs = (WRAPPERS[wrapper](INNER[inner](some.parameters())) for some in (net, resumed))
        folder = place.folder / f"{wrapper} {inner}"
        train(net, ours, range(6), place)
        write(net, ours, folder, LAYOUTS["nested"])
        starts = [whole(param.detach()).clone() for param in resumed.parameters()]
        get_optimizer_state_dict(resumed, theirs)  # Takes a step with gradients of zeros.
        for param, start in zip(resumed.parameters(), starts, strict=True):
            assert torch.equal(whole(param.detach()), start)
        read(resumed, theirs, folder, LAYOUTS["nested"])
        assert_close(everything(resumed, theirs), everything(net, ours), 0.0)
        for some, optimizer in ((net, ours), (resumed, theirs)):
            train(some, optimizer, range(6, 10), place)
        assert_close(everything(resumed, theirs), everything(net, ours), 0.0)
        if wrapper == "autopilot":
            ours.eval()
            theirs.eval()
            assert_close(everything(resumed, theirs), everything(net, ours), 0.0)


@in_processes(2)
def test_narrow_shards_keep_their_wide_moments_in_a_checkpoint(place: Place) -> None:
    options: dict[str, Any] = {"lr": 1e-3, "rounding": "kahan", "use_shadow": True}
    net, resumed = sharded(place, torch.bfloat16), sharded(place, torch.bfloat16)
    ours, theirs = (emo_torch.EmoSens(some.parameters(), **options) for some in (net, resumed))

    def go_on(some: Net, optimizer: emo_torch.EmoSens, steps: Iterable[int]) -> None:
        for step in steps:
            optimizer.zero_grad()
            inputs, targets = own_share(step, place)
            (some(inputs.bfloat16()) - targets).square().mean().backward()
            optimizer.step(loss=own_loss(step, place))

    go_on(net, ours, range(6))
    write(net, ours, place.folder, LAYOUTS["nested"])
    read(resumed, theirs, place.folder, LAYOUTS["nested"])
    assert theirs.state[resumed.one]["exp_avg"].dtype == torch.float32
    assert theirs.state[resumed.one]["compensation"].dtype == torch.bfloat16
    assert_close(everything(resumed, theirs), everything(net, ours), 0.0)
    go_on(net, ours, range(6, 9))
    go_on(resumed, theirs, range(6, 9))
    assert_close(everything(resumed, theirs), everything(net, ours), 0.0)


@in_processes(2)
def test_a_step_that_makes_state_alone_changes_nothing_and_waits_for_nobody(place: Place) -> None:
    net = sharded(place)
    optimizer = emo_torch.EmoAiry(net.parameters(), lr=0.0, use_shadow=True)
    backward(net, 0, place)
    before = {name: whole(param.detach()).clone() for name, param in net.named_parameters()}
    fresh = optimizer.emotion
    # In one process only: a wait for the other process would never end.
    if place.rank == 0:
        assert optimizer.step() is None
        assert len(optimizer.state) == len(before)
    dist.barrier()
    assert optimizer.emotion == fresh
    for name, param in net.named_parameters():
        assert torch.equal(whole(param.detach()), before[name])
    # As the functions that need a state to load into make it; a first step gives the same.
    twin = sharded(place)
    other = emo_torch.EmoAiry(twin.parameters(), lr=1e-2, use_shadow=True)
    get_optimizer_state_dict(twin, other)
    optimizer.param_groups[0]["lr"] = 1e-2
    train(net, optimizer, range(4), place)
    train(twin, other, range(4), place)
    assert_close(everything(net, optimizer), everything(twin, other), 0.0)
