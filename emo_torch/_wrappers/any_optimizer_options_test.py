"""Schedulers, scalers, groups and options of an optimizer made emotional."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import Parameter
from torch.optim import lr_scheduler

import emo_torch
from emo_torch._wrappers.any_optimizer_test import parameters, train

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 2, gamma=0.5),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10),
    "CyclicLR": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.01, 0.1),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 10),
    "ReduceLROnPlateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
}


@pytest.mark.parametrize("make_scheduler", SCHEDULERS.values(), ids=SCHEDULERS.keys())
@pytest.mark.parametrize("place", ["outside", "inside"])
def test_schedulers_steer_it_from_either_side(make_scheduler: Any, place: str) -> None:
    rates = []
    for is_wrapped in (False, True):
        params = parameters(torch.optim.SGD)
        optimizer: Any = torch.optim.SGD(params, lr=0.1, momentum=0.5)
        if is_wrapped and place == "inside":
            scheduler = make_scheduler(optimizer)
        if is_wrapped:
            optimizer = emo_torch.Emotional(optimizer)
        if not is_wrapped or place == "outside":
            scheduler = make_scheduler(optimizer)
        seen = []
        for step in range(8):
            train(optimizer, params, 1, first=step)
            scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
            seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        rates.append(seen)
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1


def test_a_gradient_scaler_steps_it_and_skips_it() -> None:
    params = parameters(torch.optim.SGD)
    optimizer = emo_torch.Emotional(torch.optim.SGD(params, lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for value, felt in ((1.0, 1), (float("inf"), 1), (1.0, 2)):
        for param in params:
            param.grad = torch.full_like(param, 8.0 * value)
        scaler.scale(torch.ones(()))
        before = params[1].detach().clone()
        scaler.step(optimizer, loss=1.0)
        scaler.update()
        assert int(optimizer.emotion.felt) == felt
        moved = torch.zeros(5) if value > 1 else torch.full((5,), 0.1 * 8.0 / 8.0)
        if felt == 1:
            torch.testing.assert_close(before - params[1].detach(), moved)


def test_groups_have_options_of_their_own_and_one_emotion() -> None:
    first, second, third = (Parameter(torch.ones(2)) for _ in range(3))
    groups: list[dict[str, Any]] = [{"params": [first], "theta": 10.0}, {"params": [second]}]
    inner = torch.optim.SGD(groups, lr=0.5)
    optimizer = emo_torch.Emotional(inner)
    first.grad, second.grad = torch.ones(2), torch.ones(2)
    optimizer.step(loss=1.0)
    assert torch.equal(first.detach(), torch.ones(2))
    assert torch.equal(second.detach(), torch.full((2,), 0.5))
    optimizer.add_param_group({"params": [third], "lr": 1.0, "shadow_effect": False})
    third.grad = torch.ones(2)
    optimizer.step(loss=9.0)
    assert torch.equal(third.detach(), torch.zeros(2))
    scalars = [group["emotion_scalar"] for group in optimizer.param_groups]
    assert scalars[0] is scalars[1] is scalars[2]
    with pytest.raises(ValueError, match="gain belongs to the one emotion"):
        optimizer.add_param_group({"params": [Parameter(torch.ones(1))], "gain": 1.0})
    with pytest.raises(ValueError, match="maximize belongs to the one emotion"):
        optimizer.add_param_group({"params": [Parameter(torch.ones(1))], "maximize": True})
    with pytest.raises(ValueError, match="Invalid theta"):
        optimizer.add_param_group({"params": [Parameter(torch.ones(1))], "theta": -1.0})
    assert len(optimizer.param_groups) == 3


def test_maximizing_turns_the_losss_sign() -> None:
    scalars = []
    for maximize in (False, True):
        param = Parameter(torch.ones(2))
        optimizer = emo_torch.Emotional(torch.optim.SGD([param], lr=0.1, maximize=maximize))
        for loss in (1.0, 2.0):
            param.grad = torch.ones(2)
            optimizer.step(loss=loss)
        scalars.append(float(optimizer.emotion.scalar))
    assert scalars[0] == -scalars[1] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"theta": -1.0}, "Invalid theta"),
        ({"shadow_rate": 0.0}, "Invalid shadow_rate"),
        ({"short_factor": 2.0}, "Invalid short_factor"),
        ({"gain": float("inf")}, "Invalid gain"),
        ({"shadow_ratio": "v3"}, "Invalid shadow_ratio"),
    ],
)
def test_bad_options_are_refused_and_leave_the_optimizer_alone(
    options: dict[str, Any], message: str
) -> None:
    inner = torch.optim.SGD([Parameter(torch.ones(1))], lr=0.1)
    names = set(inner.param_groups[0])
    with pytest.raises(ValueError, match=message):
        emo_torch.Emotional(inner, **options)
    assert set(inner.param_groups[0]) == names


def test_what_cannot_be_wrapped_is_refused() -> None:
    params = [Parameter(torch.ones(1))]
    with pytest.raises(TypeError, match="EmoSens is emotional already"):
        emo_torch.Emotional(emo_torch.EmoSens(params))
    with pytest.raises(TypeError, match="Emotional is emotional already"):
        emo_torch.Emotional(emo_torch.Emotional(torch.optim.SGD(params)))
    with pytest.raises(TypeError, match="The optimizer that moves the parameters must be"):
        emo_torch.Emotional(torch.optim.SGD)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Make SGD with differentiable=False"):
        emo_torch.Emotional(torch.optim.SGD(params, differentiable=True))
    with pytest.raises(ValueError, match="The state of SGD has no plain arrays"):
        emo_torch.to_arrays(emo_torch.Emotional(torch.optim.SGD(params)), [("weight", params[0])])
    with pytest.raises(ValueError, match="already has an option 'gain'"):
        emo_torch.Emotional(HasGain(params, {"lr": 0.1, "gain": 2.0}))


class HasGain(torch.optim.Optimizer):
    def step(self, closure: Any = None) -> Any:
        del closure


def test_numpy_numbers_and_functions_are_fine_as_options() -> None:
    param = Parameter(torch.ones(2))
    optimizer = emo_torch.Emotional(
        torch.optim.SGD([param], lr=0.1),
        theta=np.float64(1e-4),
        gain=np.float32(5),  # type: ignore[arg-type]
        use_shadow=True,
        shadow_ratio=lambda scalar: 0.5 * scalar.abs(),
        keep=emo_torch.keep_rows_and_columns(),
    )
    for loss in (1.0, 2.0, 3.0):
        param.grad = torch.ones(2)
        optimizer.step(loss=loss)
    emotion = optimizer.emotion
    assert float(emotion.shadow_ratio) == 0.5 * abs(float(emotion.scalar)) > 0
    assert param.dtype == torch.float32
    plain = emo_torch.Emotional(torch.optim.SGD([param], lr=0.1))
    with pytest.raises(ValueError, match="saved with a function for shadow_ratio"):
        plain.load_state_dict(optimizer.state_dict())
