"""EmoPilot and EmoPilotAiry in compiled C: the formulas, and kept sums with the bits of new sums."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch._kernels.job import library
from emo_torch._kernels.memory import StepMemory
from emo_torch._step import piloted
from emo_torch._testing import same_state

pytestmark = [
    pytest.mark.skipif(library() is None, reason="there is no compiled code"),
    pytest.mark.parametrize("member", ["EmoPilot", "EmoPilotAiry"]),
]
# Two blocks, of which the last one is not full; a matrix of several blocks; one element; no element.
SHAPES = ((65536 + 1500,), (400, 33), (1,), (0, 3))
# For the factors: few columns, a row longer than a part, a matrix that threads share, many dimensions.
MATRICES = ((90, 8), (70, 4), (5, 1), (3, 1500), (300, 900), (4, 3, 2, 5), (1, 7), (70000,), (6,))
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no average": {"average": False},
    "l2": {"weight_decay_mode": "l2", "weight_decay": 0.1},
    "absolute": {"weight_decay_mode": "absolute", "weight_decay": 1e-3},
    "narrow moments": {"moment_dtype": torch.bfloat16},
    "no eps": {"eps": 0.0},
    "no ceiling": {"lr": 1e-3},
    "up": {"maximize": True},
}


def made(member: str, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[list[Tensor], Any]:
    """Returns parameters in three groups, and an optimizer of a member for them."""
    source = torch.Generator().manual_seed(0)
    params: list[Tensor] = [
        torch.nn.Parameter((0.05 * torch.randn(shape, generator=source)).to(dtype)) for shape in SHAPES
    ]
    groups: Any = [{"params": params[:2]}, {"params": params[2:3], "weight_decay": 0.02}]
    groups.append({"params": params[3:]})  # Tensors without elements have no plan, and so no kept sums.
    return params, getattr(emo_torch, member)(groups, fused=True, **options)


def take(params: list[Tensor], optimizer: Any, step: int, *, without: int | None = None) -> None:
    """Takes one step with random gradients; the parameter `without` has none."""
    source = torch.Generator().manual_seed(step)
    for index, param in enumerate(params):
        grad = (0.1 * torch.randn(param.shape, generator=source)).to(param.dtype) + 0.1 * param.detach()
        param.grad = None if index == without else grad
    optimizer.step(loss=2.0 * 0.9**step + 0.1 * (step % 3))


def known(optimizer: Any) -> list[Any]:
    """Returns for the first two groups whether the last step knew the squares; `None` for no kept sums."""
    kept = [layout and layout.prepared.get("weights") for layout in optimizer._step_memory.layouts()[:2]]
    return [own and own.known.tolist() for own in kept]


def assert_equal(ours: tuple[list[Tensor], Any], theirs: tuple[list[Tensor], Any]) -> None:
    """Checks that parameters and states are equal to the last bit."""
    assert all(map(torch.equal, ours[0], theirs[0]))
    assert same_state(ours[1].state_dict(), theirs[1].state_dict())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in OPTIONS), ("l2", torch.float64), ("defaults", torch.bfloat16)],
)
def test_kept_squares_have_the_bits_of_new_sums(member: str, name: str, dtype: torch.dtype) -> None:
    ours, theirs = made(member, dtype, **OPTIONS[name]), made(member, dtype, **OPTIONS[name])
    threads = torch.get_num_threads()
    for step in range(7):
        torch.set_num_threads(1 + step % 3)
        take(*ours, step)
        torch.set_num_threads(1)
        theirs[1]._step_memory = StepMemory()  # Without it every step adds up all squares again.
        take(*theirs, step)
    torch.set_num_threads(threads)
    assert_equal(ours, theirs)
    has_sums = name != "no ceiling" and dtype != torch.bfloat16
    assert known(ours[1]) == ([[1, 1], [1]] if has_sums else [None, None])
    assert known(theirs[1]) == [None, None]


def _in_place(param: Tensor) -> None:
    with torch.no_grad():
        param.mul_(3.0)


def _one_element(param: Tensor) -> None:
    with torch.no_grad():
        param.view(-1)[1] = 9.0


def _through_data(param: Tensor) -> None:
    param.data.mul_(3.0)


def _through_numpy(param: Tensor) -> None:
    param.detach().numpy()[...] *= 3.0


def _new_data(param: Tensor) -> None:
    param.data = 3.0 * param.detach()


def _loaded(param: Tensor) -> None:
    module = torch.nn.ParameterList([param])
    module.load_state_dict({"0": 3.0 * param.detach()})


@pytest.mark.parametrize(
    "change", [_in_place, _one_element, _through_data, _through_numpy, _new_data, _loaded]
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_weight_that_changes_between_two_steps_is_seen(
    member: str, change: Callable[[Tensor], None], place: int
) -> None:
    ours, theirs = made(member), made(member)
    for step in range(8):
        take(*ours, step)
        theirs[1]._step_memory = StepMemory()
        take(*theirs, step)
        if step in (4, 6):
            change(ours[0][place])
            change(theirs[0][place])
    assert_equal(ours, theirs)


def test_only_the_changed_weights_are_added_up_again(member: str) -> None:
    params, optimizer = made(member)
    for step in range(5):
        take(params, optimizer, step)
    assert known(optimizer) == [[1, 1], [1]]
    _through_data(params[0])
    _in_place(params[2])
    take(params, optimizer, 5)
    assert known(optimizer) == [[0, 1], [0]]
    take(params, optimizer, 6)
    assert known(optimizer) == [[1, 1], [1]]


def test_eval_mode_skipped_steps_and_parameters_without_gradient_keep_the_bits(member: str) -> None:
    ours, theirs = made(member), made(member)
    for step in range(14):
        for own in (ours, theirs):
            if own is theirs:
                own[1]._step_memory = StepMemory()
            take(*own, step, without=1 if step in (6, 7, 8) else None)
            if step == 3:
                own[1].eval()
                own[1].train()
            if step == 10:
                own[1].step(loss=float("nan"))
            if step == 11:
                own[0][0].grad[5] = np.inf  # type: ignore[index]
                own[1].step(loss=1.0)
    assert int(ours[1].pilot.skipped) == 2
    assert_equal(ours, theirs)


def test_weights_that_are_replaced_for_a_skipped_step_alone_leave_no_squares_behind(member: str) -> None:
    ours, theirs = made(member), made(member)
    for step in range(8):
        for own in (ours, theirs):
            if own is theirs:
                own[1]._step_memory = StepMemory()
            take(*own, step)
            if step == 5:
                kept = own[0][0].detach().clone()
                _through_data(own[0][0])
                own[1].step(loss=float("nan"))
                own[0][0].data.copy_(kept)
    assert_equal(ours, theirs)


def test_a_ceiling_that_comes_later_finds_no_outdated_squares(member: str) -> None:
    ours, theirs = made(member), made(member)
    for step in range(9):
        for own in (ours, theirs):
            if own is theirs:
                own[1]._step_memory = StepMemory()
            for group in own[1].param_groups:
                group["lr"] = 1e-3 if step < 4 else 1e-2
            take(*own, step)
    assert known(ours[1]) == [[1, 1], [1]]
    assert_equal(ours, theirs)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_by_numbers_has_the_bits_of_a_step_by_tensors(
    member: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = made(member, **OPTIONS[name]), made(member, **OPTIONS[name])
    for own in (ours, theirs):
        del own[0][3], own[1].param_groups[2]  # Compiled code leaves tensors without elements to tensors.
        with monkeypatch.context() as patches:
            if own is theirs:
                patches.setattr(piloted, "are_numbers", lambda *_: False)
            for step in range(9):
                take(*own, step)
                if step == 6:
                    own[1].step(loss=float("inf"))
    assert theirs[1]._arrays is None
    assert ours[1]._arrays is not None
    assert_equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float64) for name in OPTIONS if name != "narrow moments"),
        *((name, torch.float32) for name in ("defaults", "narrow moments")),
        *((name, torch.bfloat16) for name in ("l2", "narrow moments", "kahan", "stochastic")),
        ("defaults", torch.float16),
    ],
)
def test_compiled_code_follows_the_formulas_for_every_shape(
    member: str, name: str, dtype: torch.dtype
) -> None:
    options = OPTIONS.get(name, {"rounding": name})
    source = torch.Generator().manual_seed(0)
    runs: list[tuple[list[Tensor], Any]] = []
    starts = [(0.1 * torch.randn(shape, generator=source)).to(dtype) for shape in MATRICES]
    threads = torch.get_num_threads()
    for fused, count in ((True, 1), (True, 2), (True, 3), (False, 1)):
        torch.set_num_threads(count)
        params: list[Tensor] = [torch.nn.Parameter(start.clone()) for start in starts]
        optimizer = getattr(emo_torch, member)(params, fused=fused, **options)
        for step in range(9):
            generator = torch.Generator().manual_seed(step)
            for param in params:
                # One extreme gradient, for the gate.
                grad = (100.0 if step == 7 else 1.0) * torch.randn(param.shape, generator=generator)
                param.grad = grad.to(dtype)
            optimizer.step(loss=2.0 * 0.9**step)
        runs.append((params, optimizer))
    torch.set_num_threads(threads)
    compiled, formulas = runs[0], runs[-1]
    for other in runs[1:-1]:
        assert_equal(compiled, other)
    # A rounding to two bytes that differs is one unit of the dtype.
    is_narrow = dtype.itemsize == 2 or "moment_dtype" in options
    bound = 0.02 if is_narrow else 1e-5 if dtype == torch.float32 else 1e-12
    for ours, theirs in zip(compiled[0], formulas[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound * 0.1)
        pairs = [
            (compiled[1].state[ours][key], formulas[1].state[theirs][key])
            for key in formulas[1].state[theirs]
        ]
        assert len(pairs) == len(compiled[1].state[ours])
        for mine, wanted in pairs if not is_narrow else ():
            torch.testing.assert_close(mine, wanted, rtol=10 * bound, atol=bound * 0.1)


def test_a_gradient_that_is_not_finite_changes_no_moment(member: str) -> None:
    params, optimizer = made(member)
    for step in range(3):
        take(params, optimizer, step)
    before = [{name: value.clone() for name, value in optimizer.state[param].items()} for param in params]
    assert params[1].grad is not None
    params[1].grad[3, 2] = np.nan
    optimizer.step(loss=1.0)
    for param, kept in zip(params, before, strict=True):
        assert all(torch.equal(optimizer.state[param][name], value) for name, value in kept.items())
    assert int(optimizer.pilot.skipped) == 1
