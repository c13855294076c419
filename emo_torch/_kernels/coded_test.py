"""Compiled code steps moments in 8 bits like the readable way, under every level of instructions."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch
from emo_shared.eight_bit import SIGNED, UNSIGNED, midpoints
from emo_torch import _kernels
from emo_torch._kernels import cpu
from emo_torch._members.by_name import MEMBERS
from emo_torch._rules.eight_bit import encode
from emo_torch._step import ways
from emo_torch.build import LEVELS

pytestmark = pytest.mark.skipif(_kernels.library() is None, reason="no compiled code")

NAMES = tuple(name for name, member in MEMBERS.items() if member.make.recipe.may_be_8bit)
SHAPES = ((70, 64), (7,), (5001,), (3, 40, 50), (33, 9), (64, 64))
"""Blocks of 256 elements, short last blocks, and small parameters, whose moments are in float32."""
LOSSES = (3.0, 2.0, 1.5, float("nan"), 1.4, 1.3)
EXACT = (0.5, 0.5)
"""With these decay rates and bfloat16 gradients, products are exact, and all ways have equal moments."""
PRECISIONS = (
    (torch.float32, "nearest"),
    (torch.bfloat16, "nearest"),
    (torch.bfloat16, "kahan"),
    (torch.float16, "stochastic"),
)
BOUND = 2e-6
"""The largest relative difference of two moments before they are encoded, and so of their scales: readable
code rounds a product and a sum at once, compiled code rounds them one after the other. A moment that is so
close to a midpoint of the table can have a code that is higher or lower by 1."""
FEW = 1e-3
"""The largest share of such moments: midpoints of the table are 0.007 of a value apart, or farther."""


def _levels() -> list[str]:
    """Returns the levels of compiled code that this processor and the library have."""
    found = _kernels.library()
    if found is None:
        return []
    names = [name for number, name in enumerate(LEVELS) if found.handle.emo_use_level(number) == number]
    found.handle.emo_use_level(-1)
    return names


@pytest.fixture(params=_levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Compiled code of one level."""
    found = _kernels.library()
    assert found is not None
    found.handle.emo_use_level(list(LEVELS).index(request.param))
    yield request.param
    found.handle.emo_use_level(-1)


@pytest.fixture(autouse=True)
def left(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of tensors that compiled code left to the other ways, for each call: always 0."""
    counts: list[int] = []

    def step(*given: Any, **named: Any) -> list[int]:
        rest = cpu.step(*given, **named)
        counts.append(len(rest))
        return rest

    monkeypatch.setattr(ways, "step_fused", step)
    yield counts
    assert counts
    assert sum(counts) == 0


class Side:
    """Parameters in two groups, and an optimizer that steps them in one of the ways."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float32, **options: Any) -> None:
        generator = torch.Generator().manual_seed(1)
        self.params = [
            torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES
        ]
        groups: list[dict[str, Any]] = [
            {"params": self.params[:4]},
            {"params": self.params[4:], "lr": 1e-3},
        ]
        self.optimizer: Any = emo_torch.create_optimizer(
            name, groups, **{"lr": 1e-2, "moment_dtype": "8bit", **options}
        )

    def step(self, number: int, scale: float = 0.1, drawn_in: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(100 + number)
        for index, param in enumerate(self.params):
            drawn = torch.randn(param.shape, generator=generator)
            # Gradients of many sizes, some of them 0.
            gradient = drawn * scale * 10.0 ** torch.randn(param.shape, generator=generator) * (drawn < 1)
            param.grad = gradient.to(drawn_in).to(param.dtype) if (index + number) % 5 else None
        self.optimizer.step(loss=LOSSES[number % len(LOSSES)])

    def everything(self) -> dict[str, Tensor]:
        found = {}
        for index, param in enumerate(self.params):
            found[f"param {index}"] = param.detach()
            for name, value in self.optimizer.state[param].items():
                found[f"{name} {index}"] = value
        return found

    def is_same(self, other: "Side") -> bool:
        ours, theirs = self.everything(), other.everything()
        return ours.keys() == theirs.keys() and all(value.equal(theirs[key]) for key, value in ours.items())


def _assert_near(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    codes = [name for name, value in ours.items() if value.dtype == torch.uint8]
    assert codes
    for name, value in ours.items():
        expected = theirs[name]
        assert value.dtype == expected.dtype
        if value.dtype == torch.uint8:
            apart = (value.int() - expected.int()).abs()
            assert int(apart.max()) <= 1, name
            assert float((apart > 0).float().mean()) <= FEW, name
        elif name.split()[0].endswith("_scale"):
            torch.testing.assert_close(value, expected, rtol=BOUND, atol=0.0, msg=name)
        elif value.dtype == torch.float32:
            torch.testing.assert_close(value, expected, rtol=2e-5, atol=2e-5, msg=name)
        elif value.is_floating_point() and not name.startswith("compensation"):
            unit = torch.finfo(value.dtype).eps
            torch.testing.assert_close(value.float(), expected.float(), rtol=2 * unit, atol=unit * 0.01)


@pytest.mark.parametrize(("dtype", "rounding"), PRECISIONS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_that_of_the_readable_way(name: str, dtype: torch.dtype, rounding: str) -> None:
    options: dict[str, Any] = {"use_shadow": True, "rounding": rounding, "dtype": dtype}
    compiled, readable = Side(name, **options), Side(name, **options, foreach=False, fused=False)
    for number in range(5):
        for side in (compiled, readable):
            side.step(number)
        _assert_near(compiled.everything(), readable.everything())
        for own, other in zip(compiled.everything().values(), readable.everything().values(), strict=True):
            own.copy_(other)  # A difference by rounding must not grow.


@pytest.mark.parametrize("mode", ["absolute", "l2"])
@pytest.mark.parametrize("name", ["emo_sens", "emo_cats", "emo_tion"])
def test_other_weight_decay_is_that_of_the_readable_way(name: str, mode: str) -> None:
    options: dict[str, Any] = {"weight_decay_mode": mode, "use_shadow": False, "maximize": True}
    compiled, readable = Side(name, **options), Side(name, **options, foreach=False, fused=False)
    for side in (compiled, readable):
        side.step(1)
    _assert_near(compiled.everything(), readable.everything())


@pytest.mark.parametrize("name", ["emo_sens", "emo_cats", "emo_lynx"])
@pytest.mark.usefixtures("level")
def test_codes_and_scales_are_equal_to_the_last_bit_where_moments_are(name: str) -> None:
    compiled = Side(name, betas=EXACT, use_shadow=False)
    readable = Side(name, betas=EXACT, use_shadow=False, foreach=False, fused=False)
    for number in range(8):
        for side in (compiled, readable):
            side.step(number, scale=10.0 ** (number - 4), drawn_in=torch.bfloat16)
        ours, theirs = compiled.everything(), readable.everything()
        moments = [key for key in ours if key.startswith("exp_avg")]
        assert [key for key in moments if not ours[key].equal(theirs[key])] == []


def _near_midpoints(table: tuple[float, ...], power: float) -> Tensor:
    """Returns values near the roots of all midpoints, in blocks with the scale 1; 64 blocks."""
    middle = torch.tensor(midpoints(table)).abs().pow(1 / power)
    steps = torch.arange(-32, 32, dtype=torch.int32)[:, None]
    near = (middle.view(torch.int32) + steps).view(torch.float32)
    return torch.cat([torch.ones(64, 1), near], dim=1).clamp(max=1.0).reshape(-1)


def _odd(values: Tensor) -> Tensor:
    """Returns values with blocks of zeros, of numbers at the ends of float32's range, and with NaN."""
    drawn = torch.randn(256, generator=torch.Generator().manual_seed(0))
    blocks = [torch.zeros(256), drawn * 1e-45, drawn * 2e-38, drawn * 1e-33, drawn * 3e38, drawn * 1e30]
    large, missing = drawn.clone(), drawn.clone()
    large[7], missing[9] = float("inf"), float("nan")
    return torch.cat([values, -values, *blocks, large, missing, drawn[:77]])


def _assert_stored(make: Any, moment: str, values: Tensor, expected: tuple[Tensor, Tensor]) -> None:
    """Asserts the codes and scales of a moment after one step whose gradients are `values`."""
    param = torch.nn.Parameter(torch.zeros(values.shape))
    # With decay rates of 0 the moment is the gradient, or its square.
    optimizer = make([param], betas=(0.0, 0.0), moment_dtype="8bit")
    param.grad = values
    optimizer.step(loss=1.0)
    codes, scales = expected
    state = optimizer.state[param]
    assert state[moment].equal(codes)
    torch.testing.assert_close(state[f"{moment}_scale"], scales, rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("level")
def test_every_code_is_that_of_the_reference() -> None:
    values = _odd(_near_midpoints(SIGNED, 1.0))
    _assert_stored(emo_torch.EmoCats, "exp_avg", values, encode(values + 0.0, SIGNED))


@pytest.mark.usefixtures("level")
def test_every_code_of_squares_is_that_of_the_reference() -> None:
    values = _odd(_near_midpoints(UNSIGNED, 2.0))
    _assert_stored(emo_torch.EmoSens, "exp_avg_sq", values, encode(values * values, UNSIGNED))


def test_levels_threads_and_places_in_memory_make_no_difference() -> None:
    found = _kernels.library()
    assert found is not None
    made = []
    before = torch.get_num_threads()
    try:
        for number in range(len(LEVELS)):
            if found.handle.emo_use_level(number) == number:
                torch.set_num_threads(1 + number % 2)
                made.append(_large(is_shifted=number == 0))
    finally:
        found.handle.emo_use_level(-1)
        torch.set_num_threads(before)
    assert all(value.equal(other[key]) for other in made[1:] for key, value in made[0].items())


def _large(*, is_shifted: bool) -> dict[str, Tensor]:
    """Returns parameters and states after three steps of parameters that several threads share."""
    generator = torch.Generator().manual_seed(3)
    values = [torch.randn(shape, generator=generator) for shape in ((300, 401), (70_001,), (9,))]
    params = [torch.nn.Parameter(_shifted(value) if is_shifted else value) for value in values]
    optimizer = emo_torch.EmoSens(params, moment_dtype="8bit")
    for _ in range(3):
        for param in params:
            gradient = torch.randn(param.shape, generator=generator)
            param.grad = _shifted(gradient) if is_shifted else gradient
        optimizer.step(loss=1.0)
        if is_shifted:
            for state in optimizer.state.values():
                state.update({name: _shifted(value) for name, value in state.items() if value.ndim})
    found = {str(index): param.detach() for index, param in enumerate(params)}
    for index, param in enumerate(params):
        found.update({f"{name} {index}": value for name, value in optimizer.state[param].items()})
    return found


def _shifted(value: Tensor) -> Tensor:
    """Returns a copy that is not aligned to a register."""
    storage = torch.zeros(value.numel() + 5, dtype=value.dtype)
    return storage[3 : 3 + value.numel()].copy_(value.detach().reshape(-1)).view(value.shape)


def test_a_moment_that_a_step_leaves_alone_keeps_its_code() -> None:
    # A decay rate that float32 rounds to 1, and gradients of 0.
    side = Side("emo_sens", betas=(1.0 - 1e-12, 1.0 - 1e-12), use_shadow=False)
    generator = torch.Generator().manual_seed(0)
    for param in side.params:
        param.grad = torch.zeros_like(param)
    side.optimizer.step(loss=2.0)
    for param in side.params:
        for name, value in side.optimizer.state[param].items():
            if name.endswith("_scale"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
                moment = name.removesuffix("_scale")
                codes = torch.randint(0, 256, param.shape, generator=generator, dtype=torch.uint8)
                codes.view(-1)[::256] = 255  # The largest value of a block is its scale.
                side.optimizer.state[param][moment].copy_(codes)
    before = {name: value.clone() for name, value in side.everything().items()}
    side.optimizer.step(loss=1.0)
    kept = {name: value for name, value in side.everything().items() if name.startswith("exp_avg")}
    assert [name for name, value in kept.items() if not value.equal(before[name])] == []


def test_small_and_large_parameters_are_stepped_in_one_call_with_a_plan(left: list[int]) -> None:
    side = Side("emo_sens")
    for number in (0, 5, 10, 15, 20):
        side.step(number)
    assert len(left) <= 10  # Two groups, five steps; a step with a ready job is not counted.
    assert [layout is not None for layout in side.optimizer._step_memory.layouts()] == [True, True]
