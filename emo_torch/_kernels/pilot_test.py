"""EmoPilot in compiled C: sums of squares that are kept between two steps have the bits of new sums."""

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

pytestmark = pytest.mark.skipif(library() is None, reason="there is no compiled code")
# Two blocks, of which the last one is not full; a matrix; one element; no element.
SHAPES = ((65536 + 1500,), (40, 33), (1,), (0, 3))
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


def made(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[list[Tensor], Any]:
    """Returns parameters in three groups, and their optimizer."""
    source = torch.Generator().manual_seed(0)
    params: list[Tensor] = [
        torch.nn.Parameter((0.05 * torch.randn(shape, generator=source)).to(dtype)) for shape in SHAPES
    ]
    groups: Any = [{"params": params[:2]}, {"params": params[2:3], "weight_decay": 0.02}]
    groups.append({"params": params[3:]})  # Tensors without elements have no plan, and so no kept sums.
    return params, emo_torch.EmoPilot(groups, fused=True, **options)


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
def test_kept_squares_have_the_bits_of_new_sums(name: str, dtype: torch.dtype) -> None:
    ours, theirs = made(dtype, **OPTIONS[name]), made(dtype, **OPTIONS[name])
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
    change: Callable[[Tensor], None], place: int
) -> None:
    ours, theirs = made(), made()
    for step in range(8):
        take(*ours, step)
        theirs[1]._step_memory = StepMemory()
        take(*theirs, step)
        if step in (4, 6):
            change(ours[0][place])
            change(theirs[0][place])
    assert_equal(ours, theirs)


def test_only_the_changed_weights_are_added_up_again() -> None:
    params, optimizer = made()
    for step in range(5):
        take(params, optimizer, step)
    assert known(optimizer) == [[1, 1], [1]]
    _through_data(params[0])
    _in_place(params[2])
    take(params, optimizer, 5)
    assert known(optimizer) == [[0, 1], [0]]
    take(params, optimizer, 6)
    assert known(optimizer) == [[1, 1], [1]]


def test_eval_mode_skipped_steps_and_parameters_without_gradient_keep_the_bits() -> None:
    ours, theirs = made(), made()
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


def test_weights_that_are_replaced_for_a_skipped_step_alone_leave_no_squares_behind() -> None:
    ours, theirs = made(), made()
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


def test_a_ceiling_that_comes_later_finds_no_outdated_squares() -> None:
    ours, theirs = made(), made()
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
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = made(**OPTIONS[name]), made(**OPTIONS[name])
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
