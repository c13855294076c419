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
