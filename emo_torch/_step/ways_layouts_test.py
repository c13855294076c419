"""The compiled way on tensors of any layout, and on tensors that change between steps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch._step.ways_test import MEMBERS, Tensors, _assert_close, _options, _start, _train


def _transposed(params: list[Tensor]) -> list[Tensor]:
    return [torch.nn.Parameter(param.detach().t()) if param.ndim == 2 else param for param in params]


def _channels_last(params: list[Tensor]) -> list[Tensor]:
    return [
        param.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for param in params
    ]


def _halves_of_one(params: list[Tensor]) -> list[Tensor]:
    storage = torch.cat([param.detach().view(-1) for param in params])
    sizes = [param.numel() for param in params]
    return [
        part.view(param.shape).requires_grad_()
        for part, param in zip(storage.split(sizes), params, strict=True)
    ]


def _with_bfloat16(params: list[Tensor]) -> list[Tensor]:
    return [
        torch.nn.Parameter(p.detach().to(torch.bfloat16 if index % 2 else p.dtype))
        for index, p in enumerate(params)
    ]


def _with_float64(params: list[Tensor]) -> list[Tensor]:
    return [
        torch.nn.Parameter(p.detach().double() if index % 2 else p.detach())
        for index, p in enumerate(params)
    ]


LAYOUTS = {
    "transposed": (_transposed, ((4, 6), (33, 9), (5,))),
    "channels last": (_channels_last, ((4, 3, 2, 2), (8, 4, 3, 3))),
    "parts of one storage": (_halves_of_one, ((4, 6), (33, 9), (5,))),
    "bfloat16 among them": (_with_bfloat16, ((4, 6), (33, 9), (5,), (7,))),
    "float64 among them": (_with_float64, ((4, 6), (33, 9), (5,), (7,))),
}


@pytest.mark.parametrize("way", [{"foreach": True}, {}], ids=["foreach", "chosen by itself"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MEMBERS)
def test_any_layout_equals_the_readable_way(name: str, layout: str, way: dict[str, Any]) -> None:
    lay, shapes = LAYOUTS[layout]
    options = _options(name, "decoupled")
    reference = _train(name, lay(_start(shapes, torch.float32)), foreach=False, **options)
    other = _train(name, lay(_start(shapes, torch.float32)), **way, **options)
    _assert_close(other, reference, 1e-5)


@pytest.mark.parametrize("name", MEMBERS)
def test_gradients_of_odd_layouts_equal_the_readable_way(name: str) -> None:
    def expand(gradient: Tensor) -> Tensor:
        return gradient[:1].expand(gradient.shape) if gradient.ndim else gradient

    def turn(gradient: Tensor) -> Tensor:
        return gradient.t().contiguous().t() if gradient.ndim == 2 else gradient

    shapes = ((4, 6), (33, 9), (5,), ())
    for lay in (expand, turn):
        reference = _train(name, _start(shapes, torch.float32), lay=lay, foreach=False)
        _assert_close(_train(name, _start(shapes, torch.float32), lay=lay), reference, 1e-5)


def test_parameters_that_overlap_step_one_after_the_other() -> None:
    def start() -> list[Tensor]:
        storage = torch.arange(1.0, 101.0)
        return [storage[:60].requires_grad_(), storage[40:].requires_grad_()]

    reference, other = start(), start()
    _train("emo_sens", reference, foreach=False)
    _train("emo_sens", other)
    for ours, theirs in zip(other, reference, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("places", [(1,), (0, 2)])
@pytest.mark.parametrize("name", ["emo_lynx", "emo_pilot", "ref_adamw_mini_schedule_free"])
def test_parameters_that_overlap_keep_their_order_whatever_their_dtypes(
    name: str, places: tuple[int, ...], dtype: torch.dtype
) -> None:
    def train(foreach: bool | None) -> dict[str, Tensor]:
        storage = torch.linspace(-1.0, 1.0, 120)
        parts = (storage[:50], storage[30:90], storage[70:], torch.linspace(2.0, 3.0, 30))
        params = [torch.nn.Parameter(part) for part in parts]
        optimizer = emo_torch.create_optimizer(name, params, lr=1e-2, foreach=foreach)
        generator = torch.Generator().manual_seed(3)
        for loss in (2.0, 3.0, 2.5):
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step(loss=loss)
            # Compiled code leaves float64 among float32 to the readable way, and steps bfloat16 separately.
            for place in places:
                state = optimizer.state[params[place]]
                state["exp_avg"] = state["exp_avg"].to(dtype)
        states = [optimizer.state[param] for param in params]
        kept = {
            f"{index}/{key}": own[key].to(torch.float32) for index, own in enumerate(states) for key in own
        }
        return {"memory": storage, "apart": params[3].detach(), **kept}

    torch.testing.assert_close(train(None), train(False), rtol=1e-6, atol=1e-6)


def test_a_gradient_that_is_the_parameter_itself_is_read_before_it_is_written() -> None:
    results = []
    for foreach in (None, False):
        param = torch.linspace(1.0, 2.0, 50).requires_grad_()
        param.grad = param.detach()
        emo_torch.EmoAiry([param], lr=0.1, foreach=foreach).step(loss=1.0)
        results.append(param.detach())
    assert results[0].equal(results[1])


def _move_moment(_: Tensor, state: Tensors) -> None:
    state["exp_avg"].data = state["exp_avg"].clone()


def _replace_moment(_: Tensor, state: Tensors) -> None:
    state["exp_avg"] = 2.0 * state["exp_avg"]


def _turn_moment(_: Tensor, state: Tensors) -> None:
    state["exp_avg"] = state["exp_avg"].t()


def _move_param(param: Tensor, _: Tensors) -> None:
    param.data = param.detach().clone()


def _turn_param(param: Tensor, _: Tensors) -> None:
    param.data = param.detach().t()


def _widen_param(param: Tensor, _: Tensors) -> None:
    param.data = param.detach().double()


CHANGES = (_move_moment, _replace_moment, _turn_moment, _move_param, _turn_param, _widen_param)


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_steps_is_seen(change: Callable[[Tensor, Tensors], None]) -> None:
    found = []
    for foreach in (None, False):
        params = _start(((6, 6), (5,)), torch.float32)
        optimizer = emo_torch.EmoSens(params, lr=0.1, foreach=foreach)
        for step in range(6):
            for param in params:
                param.grad = torch.arange(float(param.numel()), dtype=param.dtype).view(param.shape).cos()
            optimizer.step(loss=1.0 + 0.1 * step)
            if step == 2:
                change(params[0], optimizer.state[params[0]])
        found.append(params)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
