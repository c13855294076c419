"""The states that the bridge refuses and the parts that it carries over, on this side alone."""

from typing import Any

import numpy as np
import pytest
import torch

import emo_torch
from emo_shared.arrays import check_arrays


def _optimizer() -> tuple[emo_torch.EmoSens, dict[str, torch.nn.Parameter]]:
    params = {
        "bias": torch.nn.Parameter(torch.ones(3)),
        "weight": torch.nn.Parameter(torch.ones(2, 3)),
    }
    return emo_torch.EmoSens(list(params.values())), params


def test_two_parameters_of_one_name_are_refused() -> None:
    models = [torch.nn.Linear(2, 2, bias=False) for _ in range(2)]
    optimizer = emo_torch.EmoSens([model.weight for model in models])
    named = [pair for model in models for pair in model.named_parameters()]
    with pytest.raises(ValueError, match="'weight'"):
        emo_torch.to_arrays(optimizer, named)
    arrays = emo_torch.to_arrays(emo_torch.EmoSens([models[0].weight]), named[:1])
    with pytest.raises(ValueError, match="'weight'"):
        emo_torch.from_arrays(arrays, optimizer, named)
    assert not optimizer.state


def test_one_parameter_named_twice_is_not() -> None:
    optimizer, params = _optimizer()
    arrays = emo_torch.to_arrays(optimizer, [*params.items(), *params.items()])
    assert arrays.keys() == emo_torch.to_arrays(optimizer, params.items()).keys()


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool", "complex64", "<U4", "S4", "O", "m8[s]"])
def test_floats_are_not_read_from_another_kind(dtype: str) -> None:
    optimizer, params = _optimizer()
    expected = emo_torch.to_arrays(optimizer, params.items())
    arrays = {**expected, "exp_avg/bias": np.zeros(3, dtype)}
    with pytest.raises(ValueError, match=r"'exp_avg/bias' holds .*, not floating-point numbers"):
        check_arrays(arrays, expected)


@pytest.mark.parametrize("dtype", [">f4", "float16", "float64", "longdouble", "bfloat16"])
def test_floats_of_every_width_are_read(dtype: str) -> None:
    kind: Any = dtype
    if dtype == "bfloat16":
        kind = pytest.importorskip("ml_dtypes").bfloat16
    optimizer, params = _optimizer()
    arrays = emo_torch.to_arrays(optimizer, params.items())
    arrays["exp_avg/bias"] = np.full(3, 0.5).astype(kind)
    arrays["emotion/felt"] = np.asarray(7, ">i8")
    emo_torch.from_arrays(arrays, optimizer, params.items())
    moved = emo_torch.to_arrays(optimizer, params.items())
    np.testing.assert_array_equal(moved["exp_avg/bias"], np.full(3, 0.5, np.float32), strict=True)
    assert moved["emotion/felt"] == 7


def _pilot(*rates: float) -> tuple[emo_torch.EmoPilot, dict[str, torch.nn.Parameter]]:
    params = {f"w{index}": torch.nn.Parameter(torch.ones(2)) for index in range(len(rates))}
    groups = [{"params": [param], "lr": lr} for param, lr in zip(params.values(), rates, strict=True)]
    optimizer = emo_torch.EmoPilot(groups)
    for param in params.values():
        param.grad = torch.ones(2)
    optimizer.step(loss=1.0)
    return optimizer, params


@pytest.mark.parametrize(("rates", "now"), [((1e-2, 1e-3), (5e-3, 5e-4)), ((1e-2, 1e-2), (0.0, 0.0))])
def test_the_largest_rates_of_groups_come_back_from_the_first(rates: Any, now: Any) -> None:
    optimizer, params = _pilot(*rates)
    for group, lr in zip(optimizer.param_groups, now, strict=True):
        group["lr"] = lr
    arrays = emo_torch.to_arrays(optimizer, params.items())
    for group in optimizer.param_groups:
        group["peak_lr"] = 0.0
    emo_torch.from_arrays(arrays, optimizer, params.items())
    assert [group["peak_lr"] for group in optimizer.param_groups] == pytest.approx(rates)


@pytest.mark.parametrize("now", [(1e-2, 1e-3), (0.0, 0.0), (5e-3, 2e-3)])
def test_the_largest_rates_of_groups_with_schedules_of_their_own_are_refused(now: Any) -> None:
    optimizer, params = _pilot(1e-2, 2e-3)
    for group, lr in zip(optimizer.param_groups, now, strict=True):
        group["lr"] = lr
    with pytest.raises(ValueError, match=r"Group 1 had a learning rate of up to 0\.002"):
        emo_torch.to_arrays(optimizer, params.items())
    # Arrays can be read into such an optimizer.
    source, named = _pilot(1e-2, 1e-2)
    emo_torch.from_arrays(emo_torch.to_arrays(source, named.items()), optimizer, params.items())
