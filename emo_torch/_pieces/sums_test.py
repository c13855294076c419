"""Norms of large tensors equal the norms of their elements, in every way of a step."""

from typing import Any

import pytest
import torch

import emo_torch
from emo_torch._pieces.sums import LARGE, dot, multi_tensor_norm_of, norm_of
from emo_torch._rules.sign_rules import sum_of_norms

MANY = 3_000_000
WAYS: tuple[dict[str, Any], ...] = ({"foreach": False, "fused": False}, {"foreach": True}, {})
EXACT = 2e-7
"""Four roundings of float32: one block, the root, the result, and the reference itself."""


def _values(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_of_norms_of_a_large_tensor_has_all_digits_of_float32(dtype: torch.dtype) -> None:
    values = _values(MANY, dtype)
    exact = values.double().abs().sum()
    torch.testing.assert_close(sum_of_norms([values]).double(), exact, rtol=EXACT, atol=0.0)
    assert sum_of_norms([values]).dtype == torch.float32


def test_norms_and_products_of_large_tensors_have_all_digits_of_float32() -> None:
    values = _values(MANY)
    exact = values.double().square().sum()
    torch.testing.assert_close(norm_of(values).double(), exact.sqrt(), rtol=EXACT, atol=0.0)
    torch.testing.assert_close(dot(values, values).double(), exact, rtol=EXACT, atol=0.0)
    small = values[:7]
    norms = multi_tensor_norm_of([small, values, small * 2])
    torch.testing.assert_close(norms[1], norm_of(values), rtol=0.0, atol=0.0)
    torch.testing.assert_close(norms[2], torch.linalg.vector_norm(small) * 2)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (LARGE,), (LARGE + 1,), (33, 65), (3, 40, 50)])
@pytest.mark.parametrize("order", [1.0, 2.0])
def test_a_norm_is_that_of_torch_in_any_shape_and_layout(shape: tuple[int, ...], order: float) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for tensor in (values, values.transpose(0, -1) if values.ndim else values, values.neg().conj()):
        expected = torch.linalg.vector_norm(tensor, order)
        torch.testing.assert_close(norm_of(tensor, order), expected, rtol=1e-14, atol=0.0)


def test_a_norm_of_what_is_not_finite_is_not_finite() -> None:
    for value in (float("inf"), float("nan")):
        values = torch.ones(2 * LARGE + 5)
        values[-1] = value
        assert not norm_of(values).isfinite()
        assert not norm_of(values, 1.0).isfinite()


@pytest.mark.parametrize("way", WAYS)
def test_the_smoothed_norm_of_a_large_gradient_is_exact_in_every_way(way: dict[str, Any]) -> None:
    weight = torch.nn.Parameter(torch.zeros(MANY))
    optimizer = emo_torch.RefAdamWMiniScheduleFree([weight], **way)
    weight.grad = _values(MANY)
    optimizer.step(loss=1.0)
    exact = weight.grad.double().square().sum().sqrt()
    kept = optimizer.state[weight]["exp_avg_norm"].double()
    torch.testing.assert_close(kept, exact, rtol=EXACT, atol=0.0)


@pytest.mark.parametrize("name", ["emo_tion", "emo_void"])
def test_the_kept_sum_of_norms_is_exact_in_every_way(name: str) -> None:
    values = _values(MANY)
    exact = values.double().abs().sum()
    for way in WAYS:
        weight = torch.nn.Parameter(values.clone())
        optimizer: Any = emo_torch.create_optimizer(name, [weight], **way)
        weight.grad = torch.ones_like(weight)
        optimizer.step(loss=1.0)
        kept = optimizer.named_memory()["norm/kept"].double()
        torch.testing.assert_close(kept, exact, rtol=EXACT, atol=0.0)


def test_the_momentum_of_emo_tion_is_that_of_compiled_code_where_the_sum_of_norms_changes() -> None:
    """EmoTion enlarges the last digits of the sum of norms.

    The share of the gradient in the momentum is (1 - b1) tanh(d / 0.03). An error of d, the relative change
    of the sum, becomes an error of the share that is up to 3.3 times as large, and the gradients here are
    at most 4.5. With PyTorch's sums d is 4e-6 off, and the momentum 5e-5. With sums that are exact to 3
    roundings of float32 (4e-7 in d), the momentum is at most 6e-6 off.
    """
    draws = torch.Generator().manual_seed(10)
    start = torch.randn(70_000, generator=draws)
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    ways: list[dict[str, Any]] = [{}, {"foreach": False, "fused": False}]
    sides = [emo_torch.EmoTion([each], lr=1e-2, **way) for each, way in zip(weights, ways, strict=True)]
    moments: list[torch.Tensor] = []
    for step in range(8):
        grad = torch.randn(70_000, generator=draws)
        factor = 1.0 + 0.2 * float(torch.rand((), generator=draws))
        for weight, side in zip(weights, sides, strict=True):
            with torch.no_grad():
                weight.mul_(factor if step % 2 else 1.0 / factor)
            weight.grad = grad.clone()
            side.step(loss=1.0)
        moments = [side.state[weight]["exp_avg"] for weight, side in zip(weights, sides, strict=True)]
        torch.testing.assert_close(moments[0], moments[1], rtol=0.0, atol=6e-6)
        # Errors of the kept sum grow from step to step: the next kept sum is divided by it.
        moments[0].copy_(moments[1])
        sides[0].norm_tensors()["kept"].copy_(sides[1].norm_tensors()["kept"])
        with torch.no_grad():
            weights[0].copy_(weights[1])
