"""Compiled code steps bfloat16 and float16 like the readable way, and rounds to the same bits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch import _kernels as _fused
from emo_torch._kernels import cpu, pilot
from emo_torch._kernels.streams import KEYS
from emo_torch._rules.moments import store
from emo_torch._step import ref_ways, ways

needs_compiler = pytest.mark.skipif(_fused.library() is None, reason="no compiled code")
needs_grad_dtype = pytest.mark.skipif(
    not hasattr(Tensor, "grad_dtype"), reason="gradients have the dtype of their parameter"
)
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16
NAMES = (
    "emo_sens",
    "emo_cats",
    "emo_airy",
    "emo_neco",
    "emo_zeal",
    "emo_clan",
    "ref_adamw_mini_schedule_free",
    "emo_pilot",
    "emo_pilot_airy",
)
SHAPES = ((7,), (33, 9), (3, 4, 5), (70, 8), (1300,), (20, 600), ())
KEPT = {
    "bfloat16": (BFLOAT16, None, "nearest"),
    "bfloat16, moments too": (BFLOAT16, BFLOAT16, "nearest"),
    "float16, moments too": (FLOAT16, FLOAT16, "nearest"),
    "float32, moments of bfloat16": (FLOAT32, BFLOAT16, "nearest"),
    "bfloat16, kahan": (BFLOAT16, None, "kahan"),
    "float16, stochastic, moments too": (FLOAT16, FLOAT16, "stochastic"),
    "bfloat16, stochastic, moments of float16": (BFLOAT16, FLOAT16, "stochastic"),
}
Lay = Callable[[Tensor], Tensor]


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tensors that compiled code left to the other ways, for each call."""
    counts: list[int] = []
    compiled = cpu.step

    def step(*given: Any, **named: Any) -> list[int]:
        rest = compiled(*given, **named)
        counts.append(len(rest))
        return rest

    monkeypatch.setattr(ways, "step_fused", step)
    monkeypatch.setattr(ref_ways, "step_fused", step)
    take_pilot = pilot.take

    def take(*given: Any) -> Any:
        batches, rest = take_pilot(*given)
        counts.append(len(rest))
        return batches, rest

    monkeypatch.setattr(pilot, "take", take)
    return counts


def _offset(value: Tensor) -> Tensor:
    storage = torch.zeros(value.numel() + 5, dtype=value.dtype)
    return storage[3 : 3 + value.numel()].copy_(value.reshape(-1)).view(value.shape)


def _train(
    name: str,
    kept: tuple[Any, ...],
    *,
    lay: Lay = torch.clone,
    gradients: torch.dtype | None = None,
    steps: int = 6,
    shapes: tuple[tuple[int, ...], ...] = SHAPES,
    **options: Any,
) -> emo_torch.LossOptimizer:
    dtype, moments, rounding = kept
    generator = torch.Generator().manual_seed(1)
    params: list[Any] = [lay(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    for param in params:
        param.requires_grad_()
        if gradients is not None:
            param.grad_dtype = gradients
    if name.startswith("emo_pilot"):  # It has no shadow.
        own: dict[str, Any] = {}
        options.pop("use_shadow", None)
    else:
        own = {"ref_max_steps": 10} if name.startswith("ref") else {"use_shadow": True}
    given = {"lr": 1e-2, "moment_dtype": moments, "rounding": rounding, **own, **options}
    optimizer = emo_torch.create_optimizer(name, params, **given)
    for step in range(steps):
        for index, param in enumerate(params):
            gradient = lay(torch.randn(param.shape, generator=generator).mul_(0.1).to(gradients or dtype))
            param.grad = gradient if (index + step) % 5 else None
        optimizer.step(loss=(3.0, 2.0, 1.5, 1.4, 1.3)[step % 5])
    return optimizer


def _everything(optimizer: emo_torch.LossOptimizer) -> dict[str, Tensor]:
    found = {}
    for index, param in enumerate(optimizer.param_groups[0]["params"]):
        state = dict(optimizer.state[param])
        found[f"param {index}"] = param.detach()
        if "compensation" in state:  # The compensation counts as a part of the parameter.
            state["sum"] = param.detach().float() + state.pop("compensation").float()
        found.update({f"{name} {index}": value for name, value in state.items()})
    return found


def _assert_near(one: emo_torch.LossOptimizer, other: emo_torch.LossOptimizer) -> None:
    """Most numbers are equal; a difference in the seventh digit can become one unit when it is rounded."""
    ours, theirs = _everything(one), _everything(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        expected = theirs[name]
        assert value.dtype == expected.dtype
        if value.dtype == torch.bool:
            assert value.equal(expected)
            continue
        unit = torch.finfo(value.dtype if not name.startswith("sum") else FLOAT16).eps
        value, expected = value.float(), expected.float()
        unit = max(unit, 1e-5)
        # If moments differ by one of their units, steps of lr = 1e-2 differ by this number.
        moved = 0.01 * max(
            torch.finfo(kept.dtype).eps for kept in ours.values() if kept.dtype != torch.bool
        )
        torch.testing.assert_close(
            value, expected, rtol=2 * unit, atol=unit * float(expected.abs().mean()) + moved, msg=name
        )
        if unit > 1e-5 and value.numel() > 99:
            assert float((value == expected).float().mean()) > 0.9, name


@needs_compiler
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("name", NAMES)
def test_low_precision_equals_the_readable_way(name: str, kept: str, left: list[int]) -> None:
    lay = _offset if "kahan" in kept else torch.clone
    compiled = _train(name, KEPT[kept], lay=lay)
    assert sum(left) == 0 < len(left)
    _assert_near(compiled, _train(name, KEPT[kept], foreach=False, fused=False))


@needs_compiler
@pytest.mark.parametrize("mode", ["absolute", "l2"])
@pytest.mark.parametrize("name", ["emo_sens", "emo_cats", "emo_airy", "emo_zeal", "emo_pilot"])
def test_other_weight_decay_equals_the_readable_way(name: str, mode: str, left: list[int]) -> None:
    kept = KEPT["bfloat16, moments too"]
    options: dict[str, Any] = {"weight_decay_mode": mode, "use_shadow": False}
    compiled = _train(name, kept, maximize=True, **options)
    assert sum(left) == 0 < len(left)
    _assert_near(compiled, _train(name, kept, foreach=False, fused=False, maximize=True, **options))


@needs_compiler
def test_what_narrow_weights_cannot_hold_is_left_to_the_other_ways(left: list[int]) -> None:
    kept = KEPT["bfloat16"]
    options: dict[str, Any] = {"weight_decay_mode": "l2", "use_shadow": True}
    compiled = _train("emo_airy", kept, **options)
    assert sum(left) > 0
    _assert_near(compiled, _train("emo_airy", kept, foreach=False, fused=False, **options))


@needs_compiler
@pytest.mark.parametrize("rounding", ["kahan", "stochastic"])
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
@pytest.mark.parametrize("name", ["emo_sens", "emo_cats", "emo_airy"])
def test_rounding_equals_that_of_the_readable_way_to_the_last_bit(
    name: str, dtype: torch.dtype, rounding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = _train(name, (dtype, None, rounding), lay=_offset)
    compiled = cpu.step

    def in_parts(params: list[Tensor], *given: Any, group: dict[str, Any], **named: Any) -> list[int]:
        if KEYS in group:
            return list(range(len(params)))
        return compiled(params, *given, group=group, **named)

    # Compiled code steps float32 copies, and PyTorch rounds.
    monkeypatch.setattr(ways, "step_fused", in_parts)
    apart = _train(name, (dtype, None, rounding), lay=_offset)
    for own, other in zip(at_once.state.items(), apart.state.items(), strict=True):
        assert own[0].equal(other[0])
        assert {key: value.equal(other[1][key]) for key, value in own[1].items()} == dict.fromkeys(
            own[1], True
        )


@needs_compiler
@needs_grad_dtype
@pytest.mark.parametrize("name", ["emo_sens", "emo_airy", "emo_pilot"])
def test_gradients_may_have_another_dtype_than_the_weights(name: str, left: list[int]) -> None:
    kept = KEPT["bfloat16"]
    compiled = _train(name, kept, gradients=FLOAT32)
    assert sum(left) == 0 < len(left)
    _assert_near(compiled, _train(name, kept, gradients=FLOAT32, foreach=False, fused=False))


@needs_compiler
@needs_grad_dtype
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
def test_every_number_of_a_narrow_dtype_is_read_and_written_as_pytorch_does(dtype: torch.dtype) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    wide = every.float()
    # Values at the middle between two neighbours, just beside the middle, and above the range of float16.
    halves = (wide.view(torch.int32) + (2**15 if dtype == BFLOAT16 else 2**12)).view(FLOAT32)
    values = torch.cat(
        [wide, halves, halves * (1 + 2.0**-22), halves * (1 - 2.0**-22), wide * 3.7, wide * 2.0**-20]
    )
    for gradient, moments in ((every, FLOAT32), (values, dtype)):
        param = torch.nn.Parameter(torch.zeros(gradient.shape))
        param.grad_dtype = gradient.dtype
        # With decay rates of 0 the moment is the gradient.
        optimizer = emo_torch.EmoCats([param], betas=(0.0, 0.0), moment_dtype=moments, fused=True)
        param.grad = gradient
        optimizer.step(loss=1.0)
        expected = torch.zeros(gradient.shape, dtype=moments)
        store("exp_avg", gradient.float() + 0.0, expected)
        torch.testing.assert_close(
            optimizer.state[param]["exp_avg"], expected, rtol=0, atol=0, equal_nan=True
        )


@needs_compiler
@pytest.mark.parametrize("name", ["emo_airy", "emo_pilot"])
@pytest.mark.parametrize("rounding", ["kahan", "stochastic"])
def test_threads_make_no_difference(name: str, rounding: str) -> None:
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            kept, shapes = (BFLOAT16, BFLOAT16, rounding), ((300, 700), (70_001,))
            optimizer = _train(name, kept, shapes=shapes, steps=2)
            found.append(_everything(optimizer))
    finally:
        torch.set_num_threads(before)
    assert [key for key, value in found[0].items() if not value.equal(found[1][key])] == []
