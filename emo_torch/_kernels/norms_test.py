"""The sum of norms in compiled code equals PyTorch's sum, for all shapes and numbers of threads."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch._kernels import library, norms
from emo_torch._step import norm_ways

needs_compiler = pytest.mark.skipif(library() is None, reason="NO COMPILED CODE")
SHAPES = ((), (1,), (0,), (31,), (33, 65), (1025,), (70_001,), (65_536,), (3, 4, 5), (131_073,))
DTYPES = {torch.float32: 1e-6, torch.float64: 1e-14}


def _tensors(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_is_that_of_pytorch_with_any_number_of_threads(dtype: torch.dtype) -> None:
    tensors = _tensors(dtype)
    begins, sizes = norms.addresses_of(tensors)
    before, found = torch.get_num_threads(), set()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.add(norms.sum_of_sizes(begins, sizes, dtype))
    finally:
        torch.set_num_threads(before)
    expected = sum(float(tensor.double().abs().sum()) for tensor in tensors)
    assert list(found) == [pytest.approx(expected, rel=DTYPES[dtype])]


@needs_compiler
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_makes_the_sum_so(value: float) -> None:
    for place in (0, 40, 1024, 70_000):
        tensor = torch.ones(70_001)
        tensor[place] = value
        total = norms.sum_of_sizes(*norms.addresses_of([tensor]), torch.float32)
        np.testing.assert_equal(total, value)


def _strided(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def _bfloat16(tensor: Tensor) -> Tensor:
    return tensor.bfloat16()


CHANGES: dict[str, Callable[[Tensor], Tensor] | None] = {
    "plain": None,
    "strided": _strided,
    "bfloat16": _bfloat16,
}


@needs_compiler
@pytest.mark.parametrize("change", CHANGES)
def test_the_norm_of_groups_is_that_of_the_readable_way(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = norms.sum_of_sizes

    def counted(*given: Any) -> float | None:
        calls.append(given)
        return real(*given)

    monkeypatch.setattr(norm_ways, "sum_of_sizes", counted)
    params: list[Tensor] = [torch.nn.Parameter(tensor) for tensor in _tensors(torch.float32)]
    alter = CHANGES[change]
    if alter is not None:
        params[4] = torch.nn.Parameter(alter(params[4].detach()))
    params[3].requires_grad_(False)
    found = []
    for foreach in (None, False):
        optimizer = emo_torch.EmoTion([{"params": params[:4]}, {"params": params[4:]}], foreach=foreach)
        found.append(float(optimizer.take_norm()))
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert len(calls) == (alter is None)
