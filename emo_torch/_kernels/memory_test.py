"""The step memory is deleted with its optimizer, and a library with another layout of jobs is not used."""

import copy
import ctypes
import gc
import io
import logging
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch import _kernels as _fused
from emo_torch._kernels import job
from emo_torch._testing import COMPILED_MEMBERS, WITHOUT_SHADOW

MEMBERS = COMPILED_MEMBERS
needs_compiler = pytest.mark.skipif(_fused.library() is None, reason="NO C COMPILER WAS FOUND")


def _params(count: int = 3, side: int = 10) -> list[Any]:
    return [torch.nn.Parameter(torch.ones(side, side)) for _ in range(count)]


def _step(optimizer: emo_torch.LossOptimizer, steps: int = 4) -> None:
    for step in range(steps):
        for param in (param for group in optimizer.param_groups for param in group["params"]):
            param.grad = torch.full_like(param, 0.5 + step)
        optimizer.step(loss=1.0 + 0.2 * step)


CASTS: dict[str, tuple[Callable[[Any], Any], torch.dtype]] = {
    "double": (torch.nn.Module.double, torch.float32),
    "float": (torch.nn.Module.float, torch.float64),
    "half": (torch.nn.Module.half, torch.float32),
    "bfloat16": (torch.nn.Module.bfloat16, torch.float64),
}


@pytest.mark.parametrize("after", [1, 3], ids=["before a plan", "with a plan"])
@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("name", MEMBERS)
def test_a_model_cast_between_steps_steps_as_in_the_readable_way(name: str, cast: str, after: int) -> None:
    change, dtype = CASTS[cast]
    options = {} if name in WITHOUT_SHADOW else {"use_shadow": True}
    models, optimizers = [], []
    for way in ({}, {"foreach": False, "fused": False}):
        torch.manual_seed(0)
        models.append(torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 3)).to(dtype))
        params = list(models[-1].parameters())
        optimizers.append(emo_torch.create_optimizer(name, params, lr=1e-2, **options, **way))

    def values(model: Any, optimizer: Any) -> list[Tensor]:
        params = list(model.parameters())
        states = [tensor for param in params for tensor in optimizer.state[param].values()]
        return [*(param.detach() for param in params), *states]

    for step in range(8):
        if step == after:
            # From this step on, both sides agree to the last bit if only the readable way can step the
            # parameters. Compiled code steps float16 weights with float32 moments, and adds up the sums of
            # EmoPilot, EmoPilotAiry and EmoVoid.
            for ours, theirs in zip(*map(values, models, optimizers), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
                ours.copy_(theirs)
            for model in models:
                change(model)
        for model, optimizer in zip(models, optimizers, strict=True):
            generator = torch.Generator().manual_seed(step)
            for param in model.parameters():
                param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
            optimizer.step(loss=[1.0, 2.0, 1.5][step % 3])
    for ours, theirs in zip(*map(values, models, optimizers), strict=True):
        bound = 2e-6 if cast == "half" or name in ("emo_pilot", "emo_pilot_airy", "emo_void") else 0.0
        torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)


@needs_compiler
@pytest.mark.parametrize("name", MEMBERS)
def test_moments_end_with_their_optimizer_and_not_with_the_model(name: str) -> None:
    params = _params()
    optimizer = emo_torch.create_optimizer(name, params)
    _step(optimizer)
    moments = [weakref.ref(tensor) for param in params for tensor in optimizer.state[param].values()]
    del optimizer
    gc.collect()
    assert [moment() for moment in moments] == [None] * len(moments)


@needs_compiler
def test_another_first_gradient_each_step_keeps_nothing_more() -> None:
    params = _params(12, 4)
    optimizer = emo_torch.EmoSens(params)
    sizes = []
    for first in range(12):
        for index, param in enumerate(params):
            param.grad = torch.ones_like(param) if index >= first else None
        optimizer.step(loss=1.0)
        gc.collect()
        sizes.append(len(optimizer._step_memory._groups))
    assert sizes == [1] * 12
    optimizer.add_param_group({"params": _params(1)})
    _step(optimizer)
    del optimizer.param_groups[1]
    _step(optimizer)
    assert len(optimizer._step_memory._groups) == 1


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("name", MEMBERS)
def test_parameters_can_be_swapped_after_a_step(name: str, steps: int) -> None:
    params = _params()
    options = {} if name in WITHOUT_SHADOW else {"use_shadow": False}
    optimizer = emo_torch.create_optimizer(name, params, lr=1e-3, **options)
    _step(optimizer, steps)
    assert all(weakref.getweakrefcount(param) == 0 for param in params)
    for param in params:
        param.grad = None
        other = torch.ones(10, 10)
        other[0] = 2.0
        torch.utils.swap_tensors(param, torch.nn.Parameter(other))
    _step(optimizer, 1)
    # The ratio is compared, because EmoVoid scales its parameters.
    assert all((param[0] > 1.5 * param[1]).all() for param in params)


@needs_compiler
def test_two_optimizers_over_one_model_keep_their_plans() -> None:
    params = _params()
    optimizers = [emo_torch.EmoSens(params), emo_torch.EmoLynx(params)]
    for _ in range(4):
        for optimizer in optimizers:
            _step(optimizer, 1)
    assert all(optimizer._step_memory._groups[0].plan is not None for optimizer in optimizers)


@needs_compiler
def test_what_is_remembered_is_neither_copied_nor_pickled() -> None:
    optimizer = emo_torch.EmoSens(_params())
    _step(optimizer)
    assert optimizer._step_memory._groups[0].plan is not None
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert "_step_memory" not in other.__dict__
        _step(other)
    memory = optimizer._step_memory
    assert copy.deepcopy(memory)._groups == pickle.loads(pickle.dumps(memory))._groups == []


@needs_compiler
def test_a_reshaped_parameter_is_not_stepped_by_what_was_known_of_it() -> None:
    # The new shape has the same memory, rows and columns, but does not fit the moments: no way can step it.
    param = torch.nn.Parameter(torch.ones(4, 2, 3))
    optimizer = emo_torch.EmoAiry([param])
    _step(optimizer)
    param.grad = None
    param.data = param.detach().view(4, 6)
    param.grad = torch.ones(4, 6)
    with pytest.raises(RuntimeError):
        optimizer.step(loss=1.0)


# Loading.


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    nested = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for each in nested for tensor in _tensors(each)]


@pytest.mark.parametrize("name", MEMBERS)
def test_a_loaded_state_shares_no_memory_with_the_one_it_came_from(name: str) -> None:
    options = {} if name in WITHOUT_SHADOW else {"use_shadow": True}
    teacher, student = _params(), _params()
    one = emo_torch.create_optimizer(name, teacher, **options)
    other = emo_torch.create_optimizer(name, student, **options)
    _step(one)
    saved = one.state_dict()
    other.load_state_dict(saved)
    before = [tensor.clone() for param in teacher for tensor in one.state[param].values()]
    _step(other)
    after = [tensor for param in teacher for tensor in one.state[param].values()]
    assert all(ours.equal(theirs) for ours, theirs in zip(before, after, strict=True))
    places = {tensor.data_ptr() for tensor in _tensors(dict(one.state)) if tensor.numel()}
    assert places.isdisjoint(tensor.data_ptr() for tensor in _tensors(dict(other.state)) if tensor.numel())


def test_what_is_nested_in_a_loaded_state_is_copied_too() -> None:
    param = torch.nn.Parameter(torch.ones(3))
    inner = torch.optim.SGD([param], lr=0.1)
    one = emo_torch.Emotional(inner)
    nested = {"factors": [torch.ones(2), (torch.ones(3), {"root": torch.ones(4)})]}
    inner.state[param] = {"momentum_buffer": torch.ones(3), **nested}
    inner.state["shared by all"] = {"buffer": torch.ones(5)}  # type: ignore[index]
    saved = one.state_dict()
    other = emo_torch.Emotional(torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1))
    other.load_state_dict(saved)
    ours, theirs = _tensors(dict(other.state)), _tensors(dict(one.state))
    assert [tensor.shape for tensor in ours] == [tensor.shape for tensor in theirs]
    assert {id(tensor) for tensor in theirs}.isdisjoint(map(id, ours))
    assert {tensor.data_ptr() for tensor in theirs}.isdisjoint(tensor.data_ptr() for tensor in ours)


def test_a_state_from_a_file_is_loaded_as_it_was_saved() -> None:
    one, other = emo_torch.EmoSens(_params()), emo_torch.EmoSens(_params())
    _step(one)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    pairs = zip(_tensors(dict(one.state)), _tensors(dict(other.state)), strict=True)
    assert all(ours.equal(theirs) for ours, theirs in pairs)


# A parameter that is listed twice.


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_twice_is_refused_with_foreach_and_else_stepped_twice() -> None:
    def twice(**way: Any) -> emo_torch.LossOptimizer:
        param = torch.nn.Parameter(torch.ones(3))
        return emo_torch.EmoSens([param, param], lr=0.1, **way)

    with pytest.raises(ValueError, match="listed twice"):
        twice(foreach=True)
    optimizers = [twice(), twice(foreach=False)]
    for optimizer in optimizers:
        _step(optimizer, 3)
    weights = [optimizer.param_groups[0]["params"][0].detach() for optimizer in optimizers]
    assert weights[0].equal(weights[1])
    before = weights[0].clone()
    optimizers[0].param_groups[0]["foreach"] = True
    with pytest.raises(ValueError, match="listed twice"):
        _step(optimizers[0], 1)
    assert weights[0].equal(before)
    assert int(optimizers[0].emotion.felt) == 3  # type: ignore[attr-defined]


# The layout of the job.


class _Function:
    """A function of a library that always returns the same number."""

    def __init__(self, answer: int) -> None:
        self.answer = answer

    def __call__(self) -> int:
        return self.answer


class _Handle:
    """A library that was compiled from another source."""

    _name = "other.so"

    def __init__(self, **answers: int) -> None:
        right = {
            "emo_job_version": job.JOB_VERSION,
            "emo_job_size": ctypes.sizeof(job.Job),
            "emo_rule_size": ctypes.sizeof(job.Rule),
        }
        for name, answer in {**right, **answers}.items():
            if answer >= 0:
                setattr(self, name, _Function(answer))


@pytest.mark.parametrize(
    "answers", [{"emo_job_version": 99}, {"emo_job_size": 8}, {"emo_rule_size": 8}, {"emo_job_size": -1}]
)
def test_a_library_of_another_layout_is_not_used_and_one_line_says_so(
    answers: dict[str, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _fused.library.cache_clear()
    monkeypatch.setattr(job, "load_library", lambda: _Handle(**answers))
    try:
        with caplog.at_level(logging.WARNING, "emo_torch"):
            optimizer = emo_torch.EmoSens(_params())
            _step(optimizer)
            _step(emo_torch.EmoSens(_params()))
    finally:
        _fused.library.cache_clear()
    assert len(caplog.records) == 1
    assert "Stepping without compiled code" in caplog.text
    assert (optimizer.param_groups[0]["params"][0] < 1.0).all()
