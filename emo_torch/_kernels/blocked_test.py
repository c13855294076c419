"""The way in blocks gives the numbers of the readable way, for every member, dtype and unusual layout."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch._kernels import STEERED, FusedRule, FusedStep, blocked
from emo_torch._members.by_name import MEMBERS as REGISTRY
from emo_torch._step import ways as _ways
from emo_torch._testing import COMPILED_MEMBERS

DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5}
# The way in blocks leaves all steps of these rules to the other ways.
LEFT = ("sign", "fresh_sign", *STEERED)
MEMBERS = tuple(name for name in COMPILED_MEMBERS if REGISTRY[name].make.recipe.rules[0].name not in LEFT)
ADAMS = ("emo_sens", "emo_navi")
# Other ways take some steps of EmoNeco and EmoZeal, and all steps of the third excluded member.
BLOCKED = {name for name in MEMBERS if name not in ("emo_neco", "emo_zeal", "ref_adamw_mini_schedule_free")}
SHAPES = ((), (1,), (7,), (0,), (0, 3), (33, 65), (1, 5), (64, 8), (64, 8), (3, 4, 5), (2_003,), (301, 7))
LOSSES = (2.0, 2.1, 9.0, float("nan"), 2.0, 1.9)


@pytest.fixture(autouse=True)
def without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Hides compiled code, makes blocks small, and counts the parameters left to the other ways."""
    monkeypatch.setattr(_ways, "library", lambda: None)
    monkeypatch.setattr(blocked, "BLOCK", 500)
    left: list[int] = []

    def step(params: list[Tensor], *args: Any, **given: Any) -> list[int]:
        rest = blocked.step(params, *args, **given)
        left.append(len(rest) - sum(param.numel() == 0 for param in params))
        return rest

    monkeypatch.setattr(_ways, "step_blocked", step)
    return left


def _start(shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [torch.nn.Parameter(param.to(dtype)) for param in drawn]


def _train(
    name: str,
    params: list[Tensor],
    lay: Callable[[Tensor], Tensor] = lambda gradient: gradient,
    **options: Any,
) -> dict[str, Tensor]:
    """Takes some steps, and returns parameters, state and memory by name."""
    optimizer = emo_torch.create_optimizer(name, params, **{"lr": 1e-2, **options})
    generator = torch.Generator().manual_seed(3)
    for step, loss in enumerate(LOSSES):
        for index, param in enumerate(params):
            gradient = torch.randn(param.shape, generator=generator, dtype=torch.float64)
            gradient *= torch.rand(param.shape, generator=generator) > 0.2
            is_absent = (index == 6 and step < 2) or (index == 2 and step % 3 == 1)
            param.grad = None if is_absent else lay(gradient.to(param.dtype))
        optimizer.step(loss=loss)
    found = {**optimizer.named_memory(), **{f"param {i}": p.detach() for i, p in enumerate(params)}}
    for index, param in enumerate(params):
        found.update({f"{key} {index}": value for key, value in optimizer.state[param].items()})
    return found


def _assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], bound: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=bound, atol=bound, msg=name)


def _options(name: str, mode: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "weight_decay_mode": mode,
        "maximize": mode == "absolute",
        "weight_decay": 0.1,
    }
    if name == "ref_adamw_mini_schedule_free":
        return {**options, "ref_max_steps": 10}
    options["use_shadow"] = True
    if name in ("emo_sens", "emo_airy", "emo_cats"):
        options["theta"] = 0.3  # The filter stops some elements.
    return options


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["decoupled", "absolute", "l2"])
@pytest.mark.parametrize("name", MEMBERS)
def test_blocks_equal_the_readable_way(
    name: str, mode: str, dtype: torch.dtype, without_a_compiler: list[int]
) -> None:
    options = _options(name, mode)
    ours = _train(name, _start(SHAPES, dtype), **options)
    _assert_close(ours, _train(name, _start(SHAPES, dtype), foreach=False, **options), DTYPES[dtype])
    assert name not in BLOCKED or sum(without_a_compiler) == 0


@pytest.mark.parametrize("name", sorted(BLOCKED))
def test_the_plain_options_equal_the_readable_way(name: str) -> None:
    options: dict[str, Any] = {"weight_decay": 0.0, "lr": torch.tensor(1e-2), "use_shadow": False}
    ours = _train(name, _start(SHAPES, torch.float32), **options)
    _assert_close(ours, _train(name, _start(SHAPES, torch.float32), foreach=False, **options), 1e-5)


def test_rows_that_the_filter_stops_stay() -> None:
    def stop(gradient: Tensor) -> Tensor:
        gradient[0] = 1e-9
        return gradient

    options: dict[str, Any] = {"eps": 0.0, "weight_decay": 0.0, "theta": 1e-3, "lay": stop}
    start = _start(((4, 6), (90, 8)), torch.float64)
    ours = _train("emo_airy", start, **options)
    for index, before in enumerate(_start(((4, 6), (90, 8)), torch.float64)):
        assert ours[f"param {index}"][0].equal(before.detach()[0])
        assert not ours[f"param {index}"][1:].equal(before.detach()[1:])
    theirs = _train("emo_airy", _start(((4, 6), (90, 8)), torch.float64), foreach=False, **options)
    _assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize("name", MEMBERS)
def test_gradients_that_are_not_finite_leave_the_weights_as_in_the_readable_way(name: str) -> None:
    def spoil(gradient: Tensor) -> Tensor:
        if gradient.numel() > 3:
            gradient.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
        return gradient

    shapes = ((5,), (6, 7), (41,))
    ours = _train(name, _start(shapes, torch.float32), lay=spoil)
    theirs = _train(name, _start(shapes, torch.float32), lay=spoil, foreach=False)
    for index in range(len(shapes)):
        key = f"param {index}"
        torch.testing.assert_close(ours[key], theirs[key], equal_nan=True, rtol=1e-5, atol=1e-5)


def test_theta_0_stops_elements_with_nan_gradients() -> None:
    found = []
    for foreach in (None, False):
        weight = torch.nn.Parameter(torch.ones(70))
        weight.grad = torch.zeros(70)
        weight.grad[[0, 69]] = float("nan")
        weight.grad[5] = 1.0
        emo_torch.EmoSens([weight], lr=0.1, theta=0.0, foreach=foreach).step(loss=1.0)
        found.append(weight.detach())
    torch.testing.assert_close(*found)
    assert found[0].isfinite().all()


@pytest.mark.parametrize("name", ADAMS)
def test_a_scalar_of_1_leaves_decay_and_what_is_not_scaled(name: str) -> None:
    found = []
    for foreach in (None, False):
        weight = torch.nn.Parameter(torch.linspace(1.0, 2.0, 9))
        optimizer = emo_torch.create_optimizer(name, [weight], lr=0.1, weight_decay=0.5, foreach=foreach)
        for loss in (1.0, 1e6):
            weight.grad = torch.linspace(-1.0, 1.0, 9)
            optimizer.step(loss=loss)
        assert isinstance(optimizer, emo_torch.EmoOptimizer)
        assert float(optimizer.emotion.scalar) == 1.0
        found.append(weight.detach())
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


def _turned(params: list[Tensor]) -> list[Tensor]:
    return [torch.nn.Parameter(param.detach().t()) if param.ndim == 2 else param for param in params]


def _of_several_dtypes(params: list[Tensor]) -> list[Tensor]:
    kinds = (torch.float32, torch.bfloat16, torch.float64)
    return [torch.nn.Parameter(param.detach().to(kinds[index % 3])) for index, param in enumerate(params)]


def _halves_of_one(params: list[Tensor]) -> list[Tensor]:
    storage = torch.cat([param.detach().view(-1) for param in params])
    parts = storage.split([param.numel() for param in params])
    return [part.view(param.shape).requires_grad_() for part, param in zip(parts, params, strict=True)]


@pytest.mark.parametrize("lay", [_turned, _of_several_dtypes, _halves_of_one])
@pytest.mark.parametrize("name", MEMBERS)
def test_odd_layouts_equal_the_readable_way(name: str, lay: Callable[[list[Tensor]], list[Tensor]]) -> None:
    def turn(gradient: Tensor) -> Tensor:
        return gradient.t().contiguous().t() if gradient.shape == (33, 9) else gradient

    shapes = ((4, 6), (33, 9), (5,), (40, 4), (600,))
    options = _options(name, "decoupled")
    ours = _train(name, lay(_start(shapes, torch.float32)), turn, **options)
    theirs = _train(name, lay(_start(shapes, torch.float32)), turn, foreach=False, **options)
    _assert_close(ours, theirs, 1e-5)


def test_parameters_that_overlap_are_left_to_the_other_ways(without_a_compiler: list[int]) -> None:
    storage = torch.arange(1.0, 101.0)
    params: list[Tensor] = [storage[:60].requires_grad_(), storage[40:].requires_grad_()]
    _train("emo_sens", params)
    assert set(without_a_compiler) == {2}


def test_parameters_that_overlap_keep_their_order_whatever_their_layouts(
    without_a_compiler: list[int],
) -> None:
    def train(**options: Any) -> list[Tensor]:
        memory = torch.linspace(-1.0, 1.0, 1200).view(40, 30)
        # The transposed parameter overlaps with its two neighbours; the last parameter overlaps with none.
        parts = (memory[:15], memory[10:30].t(), memory[25:35], memory[35:])
        params: list[Tensor] = [torch.nn.Parameter(part) for part in parts]
        _train("emo_lynx", params, **options)
        return [param.detach() for param in params]

    torch.testing.assert_close(train(), train(foreach=False), rtol=1e-5, atol=1e-5)
    assert set(without_a_compiler) == {2, 3}  # In one step a parameter has no gradient.


def test_a_gradient_is_never_written_to() -> None:
    for mode in ("decoupled", "l2"):
        weight = torch.nn.Parameter(torch.ones(700))
        weight.grad = torch.linspace(-1.0, 1.0, 700)
        before = weight.grad.clone()
        emo_torch.EmoSens([weight], weight_decay_mode=mode, maximize=True).step(loss=1.0)
        assert weight.grad.equal(before)


def test_a_graph_on_weights_that_a_step_changed_is_refused() -> None:
    weight = torch.nn.Parameter(torch.ones(700))
    loss = weight.square().sum()
    weight.grad = torch.ones(700)
    emo_torch.EmoSens([weight]).step(loss=1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_the_code_of_pytorch_the_other_ways_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "_fused_adamw_")
    spec = FusedStep((FusedRule("uncorrected_adam", (0.9, 0.999), 1e-8),))
    assert blocked._rule_of(spec) is None
    ours = _train("emo_sens", _start(SHAPES, torch.float32))
    _assert_close(ours, _train("emo_sens", _start(SHAPES, torch.float32), foreach=False), 0.0)


SWITCHED_OFF = """
import torch
import emo_torch
from emo_torch._step import ways as _ways
from emo_torch._kernels import blocked, library

assert library() is None
counts = []
def step(params, *args, **given):
    rest = blocked.step(params, *args, **given)
    counts.append(len(rest))
    return rest
_ways.step_blocked = step
weight = torch.nn.Parameter(torch.ones(5))
weight.grad = torch.ones(5)
emo_torch.EmoSens([weight]).step(loss=1.0)
assert counts == [0]
"""


def test_compiled_code_that_is_switched_off_makes_room_for_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMO_TORCH_COMPILE", "0")
    run = subprocess.run([sys.executable, "-c", SWITCHED_OFF], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
