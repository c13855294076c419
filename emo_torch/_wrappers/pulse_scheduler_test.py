"""The pulse as a schedule of any optimizer."""

import copy
import io
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

import emo_torch

LOSSES = (1.0, 0.5, float("nan"), 4.0, 0.2)


def optimizer_of(**options: Any) -> Any:
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    return torch.optim.SGD([weight], **{"lr": 1.0, **options})


def test_the_learning_rate_is_the_pulse_and_does_not_rise_with_the_scope() -> None:
    optimizer = optimizer_of()
    scheduler = emo_torch.EmoPulseScheduler(optimizer, 100.0)
    assert isinstance(scheduler, LRScheduler)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(3e-3)  # The ceiling.
    small, state = (
        emo_torch.EmoPulseScheduler(optimizer_of(), 0.5),
        emo_torch.init_pulse(torch.float32, 0.5),
    )
    for loss in LOSSES:
        small.step(loss=loss)
        state = emo_torch.feel_pulse(state, torch.tensor(loss), 0.5, ceiling=3e-3)
        assert small.get_last_lr() == [state.pulse.item()] == [small.optimizer.param_groups[0]["lr"]]
    assert (int(small.pulse.felt), int(small.pulse.held)) == (4, 1)
    assert emo_torch.get_metrics(small)["pulse/held"] == 1.0


def test_a_tensor_stays_the_learning_rate_and_all_groups_get_it() -> None:
    rate = torch.tensor(1.0)
    optimizer = optimizer_of(lr=rate)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 5.0})
    scheduler = emo_torch.EmoPulseScheduler(optimizer)
    scheduler.step(loss=torch.tensor(1.0))
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(1e-4)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(1e-4)


def test_a_saved_schedule_goes_on() -> None:
    whole, half = emo_torch.EmoPulseScheduler(optimizer_of()), emo_torch.EmoPulseScheduler(optimizer_of())
    for loss in LOSSES:
        whole.step(loss=loss)
    for loss in LOSSES[:2]:
        half.step(loss=loss)
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    again = emo_torch.EmoPulseScheduler(optimizer_of())
    saved = torch.load(file, weights_only=True)
    before = copy.deepcopy(saved)
    again.load_state_dict(saved)
    assert saved == before
    for loss in LOSSES[2:]:
        again.step(loss=loss)
    assert again.state_dict() == whole.state_dict()
    with pytest.raises(ValueError, match="not a state of EmoPulseScheduler"):
        again.load_state_dict({"last_epoch": 3})


def test_bad_input_is_refused() -> None:
    scheduler = emo_torch.EmoPulseScheduler(optimizer_of())
    before = scheduler.get_last_lr()
    with pytest.raises(emo_torch.LossMissingError):
        scheduler.step()
    with pytest.raises(ValueError, match="must be a scalar"):
        scheduler.step(loss=torch.ones(2))
    assert scheduler.get_last_lr() == before
    for option, value in {
        "ceiling": -1.0,
        "stopcoef": -1.0,
        "spike_limit": 0.5,
        "loss_unit": "last",
    }.items():
        with pytest.raises(ValueError, match=option):
            emo_torch.EmoPulseScheduler(optimizer_of(), **{option: value})  # type: ignore[arg-type]
    weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(TypeError, match="already has a pulse"):
        emo_torch.EmoPulseScheduler(emo_torch.EmoSens3([weight]))
