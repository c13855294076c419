"""The ways to step: each gives the numbers of the readable way, for every optimizer, dtype and layout."""

import copy
import functools
import gc
import multiprocessing
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch import _kernels as _fused
from emo_torch._kernels import job
from emo_torch._testing import COMPILED_MEMBERS

MEMBERS = COMPILED_MEMBERS
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5}
SHAPES = (
    *((), (1,), (7,), (0,), (0, 3), (5, 0)),
    *((33, 65), (1, 5), (64, 8), (8, 64), (140, 4), (70, 16), (3, 4, 5)),
    *((70_001,), (301, 700)),  # Large enough for several threads.
)
MODES = ("decoupled", "absolute", "l2")
WITHOUT_EMOTION = {
    "ref_adamw_mini_schedule_free": {"ref_max_steps": 10},
    "emo_pilot": {},
    "emo_pilot_airy": {},
}
needs_compiler = pytest.mark.skipif(_fused.library() is None, reason="NO COMPILED CODE")
Tensors = dict[str, Tensor]


def _gradient(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    gradient = torch.randn(shape, generator=generator, dtype=dtype)
    return gradient * (torch.rand(shape, generator=generator) > 0.2)


@functools.lru_cache(maxsize=8)
def _gradients(shapes: tuple[tuple[int, ...], ...], steps: int) -> list[list[Tensor]]:
    """Returns the gradients of some steps, in float64."""
    generator = torch.Generator().manual_seed(3)
    return [[_gradient(shape, torch.float64, generator) for shape in shapes] for _ in range(steps)]


def _losses(steps: int) -> list[float]:
    """Returns losses with which the scalar has values in every band, and one loss that is not finite."""
    losses = [2.0, 2.1, 2.3, 1.9, 2.05, float("nan"), 2.0, 9.0, 2.0, 1.2, 1.95, 2.2]
    return [losses[step % len(losses)] for step in range(steps)]


def _is_absent(index: int, step: int) -> bool:
    # One parameter gets its first gradient late, and one parameter has no gradient at some steps.
    return (index == 6 and step < 2) or (index == 2 and step % 3 == 1)


def _train(
    name: str,
    params: list[Tensor],
    steps: int = 8,
    lay: Callable[[Tensor], Tensor] = lambda gradient: gradient,
    **options: Any,
) -> emo_torch.LossOptimizer:
    """Takes some steps with gradients that are equal for equal shapes."""
    optimizer = emo_torch.create_optimizer(name, params, **options)
    gradients = _gradients(tuple(tuple(param.shape) for param in params), steps)
    for step, loss in enumerate(_losses(steps)):
        for index, param in enumerate(params):
            gradient = gradients[step][index].to(param.dtype, copy=True)
            param.grad = None if _is_absent(index, step) else lay(gradient)
        optimizer.step(loss=loss)
    return optimizer


def _start(shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [torch.nn.Parameter(param.to(dtype)) for param in drawn]


def _everything(optimizer: emo_torch.LossOptimizer) -> Tensors:
    """Returns parameters, moments, shadows and memory; not EmoTion's sum, which may be all rounding."""
    found = {name: kept for name, kept in optimizer.named_memory().items() if name != "norm/kept"}
    for group in optimizer.param_groups:
        for index, param in enumerate(group["params"]):
            found[f"param {index}"] = param.detach()
            found.update({f"{name} {index}": value for name, value in optimizer.state[param].items()})
    return found


def _assert_close(
    one: emo_torch.LossOptimizer, other: emo_torch.LossOptimizer | Tensors, bound: float
) -> None:
    ours = _everything(one)
    theirs = other if isinstance(other, dict) else _everything(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=bound, atol=bound, msg=name)


def _options(name: str, mode: str, *, maximize: bool = False) -> dict[str, Any]:
    options: dict[str, Any] = {"weight_decay_mode": mode, "maximize": maximize, "lr": 1e-2}
    if name in WITHOUT_EMOTION:
        return {**options, **WITHOUT_EMOTION[name]}
    # With this theta the filter stops some elements.
    theta = {"theta": 0.3} if name in ("emo_sens", "emo_airy", "emo_cats") else {}
    return {**options, "use_shadow": True, **theta}


def test_no_sign_in_these_gradients_stands_so_near_its_border_that_a_rounding_decides() -> None:
    # Only with such gradients can members with a sign be compared in float32 on every processor.
    generator = torch.Generator().manual_seed(3)
    averages = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]
    for step in range(8):
        for index, average in enumerate(averages):
            new = 0.1 * _gradient(tuple(average.shape), torch.float64, generator)
            if _is_absent(index, step):
                continue
            old = 0.9 * average
            size = new.abs() + old.abs()
            near = (new + old).abs() < 4 * torch.finfo(torch.float32).eps * size
            assert not near.any()
            average.mul_(0.99).add_(0.1 * new)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MEMBERS)
def test_the_fused_way_equals_the_readable_one(name: str, mode: str, dtype: torch.dtype) -> None:
    options = _options(name, mode, maximize=mode == "absolute")
    reference = _everything(_train(name, _start(SHAPES, dtype), foreach=False, **options))
    # Several threads: where the bound is narrow, and for one mode of weight decay.
    is_short = mode != "decoupled" or dtype != torch.float64
    before = torch.get_num_threads()
    try:
        for threads in (1,) if is_short else (1, 2, 3, 5):
            torch.set_num_threads(threads)
            fused = _train(name, _start(SHAPES, dtype), fused=True, **options)
            _assert_close(fused, reference, DTYPES[dtype])
    finally:
        torch.set_num_threads(before)


@needs_compiler
@pytest.mark.parametrize("mode", ["decoupled", "l2"])
@pytest.mark.parametrize("name", MEMBERS)
def test_compiled_code_makes_the_same_bits_with_any_number_of_threads(name: str, mode: str) -> None:
    shapes = ((70_001,), (70, 700), (20, 5000), (9000, 8), (9, 3, 5), (2000, 16))
    dtype = torch.float32 if mode == "l2" else torch.float64  # float64 shows each rounding of a sum.
    before = torch.get_num_threads()
    found: list[Tensors] = []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            params = _start(shapes, dtype)
            found.append(_everything(_train(name, params, 2, fused=True, **_options(name, mode))))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert [key for key, value in found[0].items() if not value.equal(other[key])] == []


@needs_compiler
@pytest.mark.parametrize("columns", [4, 8, 16])
@pytest.mark.parametrize("name", ["emo_airy", "emo_zeal"])
def test_threads_that_share_a_matrix_of_few_columns_agree(name: str, columns: int) -> None:
    shapes = ((2**17 // columns + 1, columns),)
    reference = _train(name, _start(shapes, torch.float64), 3, foreach=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        fused = _train(name, _start(shapes, torch.float64), 3, fused=True)
    finally:
        torch.set_num_threads(before)
    _assert_close(fused, reference, 1e-12)


@needs_compiler
def test_a_row_that_the_filter_stops_stays() -> None:
    options: dict[str, Any] = {"lr": 1e-2, "eps": 0.0, "weight_decay": 0.0}

    def stop(gradient: Tensor) -> Tensor:
        if gradient.ndim > 1:
            gradient[0] = 1e-9
        return gradient

    shapes = ((4, 6), (40, 8))
    params = _start(shapes, torch.float64)
    befores = [param.detach().clone() for param in params]
    fused = _train("emo_airy", params, lay=stop, fused=True, **options)
    for param, before in zip(params, befores, strict=True):
        assert param[0].equal(before[0])
        assert not param[1:].equal(before[1:])
    _assert_close(
        fused, _train("emo_airy", _start(shapes, torch.float64), lay=stop, foreach=False, **options), 1e-12
    )


@needs_compiler
@pytest.mark.parametrize("name", MEMBERS)
def test_gradients_that_are_not_finite_go_where_they_go_in_the_readable_way(name: str) -> None:
    def spoil(gradient: Tensor) -> Tensor:
        if gradient.numel() > 3:
            gradient.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
        return gradient

    shapes = ((5,), (6, 7))
    fused = _train(name, _start(shapes, torch.float32), 3, spoil, fused=True)
    reference = _train(name, _start(shapes, torch.float32), 3, spoil, foreach=False)
    ours, theirs = _everything(fused), _everything(reference)
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], equal_nan=True, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize("way", [{}, {"foreach": True}], ids=["chosen by itself", "foreach"])
@pytest.mark.parametrize("name", [name for name in MEMBERS if name not in WITHOUT_EMOTION])
def test_weights_that_are_not_finite_leave_a_resting_shadow_alone(name: str, way: dict[str, Any]) -> None:
    found = []
    for chosen in (way, {"foreach": False, "fused": False}):
        param = torch.nn.Parameter(torch.ones(4, 3))
        optimizer = emo_torch.create_optimizer(name, [param], use_shadow=True, **chosen)
        for step in range(4):
            param.grad = torch.ones(4, 3)
            param.grad[0, step % 3] = [float("nan"), float("inf"), 1.0, 1.0][step]
            optimizer.step(loss=1.0)
        found.append([param.detach(), *optimizer.state[param].values()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-5, atol=1e-5)


@needs_compiler
def test_a_model_is_not_kept_alive() -> None:
    params: list[Tensor] = [torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.ones(6))]
    seen = [weakref.ref(param) for param in params]
    optimizer = _train("emo_sens", params, 3, fused=True)
    moment = weakref.ref(optimizer.state[params[0]]["exp_avg"])
    del params, optimizer
    gc.collect()
    assert [ref() for ref in (*seen, moment)] == [None] * 3


@needs_compiler
def test_parameters_of_inference_mode_step_in_another_way() -> None:
    with torch.inference_mode():
        params = [torch.ones(5)]
        optimizer = emo_torch.EmoSens(params, lr=0.1)
        params[0].grad = torch.ones(5)
        optimizer.step(loss=1.0)
    reference = [torch.ones(5)]
    reference[0].grad = torch.ones(5)
    emo_torch.EmoSens(reference, lr=0.1, foreach=False).step(loss=1.0)
    assert params[0].equal(reference[0])


@needs_compiler
def test_a_graph_on_weights_that_a_step_changed_is_refused() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = emo_torch.EmoSens([weight], fused=True)
    loss = weight.square().sum()
    weight.grad = torch.ones(3)
    version = weight._version
    optimizer.step(loss=1.0)
    assert weight._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_compiler
def test_a_resumed_run_goes_on_to_the_last_bit() -> None:
    whole = _start(SHAPES, torch.float32)
    one = _train("emo_clan", whole, fused=True)
    copies = [torch.nn.Parameter(param.detach().clone()) for param in whole]
    other = emo_torch.EmoClan(copies, fused=True)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for optimizer, params in ((one, whole), (other, copies)):
        for param in params:
            param.grad = torch.full_like(param, 0.1)
        optimizer.step(loss=1.7)
    assert all(ours.equal(theirs) for ours, theirs in zip(whole, copies, strict=True))


FORKED = """
import multiprocessing
import torch
import emo_torch

def total():
    weight = torch.linspace(1.0, 2.0, 210_000).view(300, 700).requires_grad_()
    weight.grad = weight.detach().cos()
    emo_torch.EmoAiry([weight], lr=0.1, fused=True).step(loss=1.0)
    return float(weight.detach()[::7, ::11].sum())

def child(queue):
    torch.set_num_threads(1)  # PyTorch's own code would wait for its threads.
    torch.get_num_threads = lambda: 2
    queue.put(total())

torch.set_num_threads(2)
expected = total()  # From this line on, threads run.
context = multiprocessing.get_context("fork")
queue = context.Queue()
context.Process(target=child, args=(queue,), daemon=True).start()
assert abs(queue.get(timeout=60) - expected) < 1e-5 * abs(expected)
"""


@needs_compiler
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="nothing is forked here")
def test_a_forked_process_steps_too() -> None:
    # In a process of its own: other tests have started threads in this process.
    run = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


# Environments without compiled code or a GPU.


def test_without_compiled_code_everything_works(monkeypatch: pytest.MonkeyPatch) -> None:
    _fused.library.cache_clear()
    monkeypatch.setattr(job, "load_library", lambda: None)
    try:
        reference = _train("emo_sens", _start(SHAPES, torch.float32), foreach=False)
        other = _train("emo_sens", _start(SHAPES, torch.float32))
        with pytest.raises(RuntimeError, match=r"needs the compiled code.*python -m emo_torch\.build"):
            emo_torch.EmoSens([torch.ones(1)], fused=True)
    finally:
        _fused.library.cache_clear()
    _assert_close(other, reference, 1e-5)


@pytest.mark.parametrize("name", MEMBERS)
def test_two_ways_at_once_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="pass one of them, or neither"):
        emo_torch.create_optimizer(name, [torch.ones(1)], foreach=True, fused=True)


@needs_compiler
def test_fused_is_refused_for_what_it_cannot_take() -> None:
    with pytest.raises(RuntimeError, match=r"float16 on the CPU; .* not torch\.float8_e5m2 on cpu"):
        emo_torch.EmoSens([torch.ones(1).to(torch.float8_e5m2)], fused=True)
    for make in (emo_torch.EmoSens, emo_torch.EmoPilot):
        make([torch.ones(1, dtype=torch.bfloat16), torch.ones(1, dtype=torch.float16)], fused=True)
    optimizer = emo_torch.EmoSens([torch.ones(1)], fused=True)
    with pytest.raises(RuntimeError, match="on meta"):
        optimizer.add_param_group({"params": [torch.ones(1, device="meta")]})
    assert len(optimizer.param_groups) == 1


class _Graph:
    """Replaces functions of torch, as if a CUDA graph were being captured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


def test_a_capture_needs_capturable_and_a_loss_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    param = torch.ones(2, requires_grad=True)
    param.grad = torch.ones(2)
    plain, capturable = emo_torch.EmoSens([param]), emo_torch.EmoSens([param], capturable=True)
    _Graph(monkeypatch)
    with pytest.raises(RuntimeError, match="capturable=True in every group"):
        plain.step(loss=torch.tensor(1.0))
    with pytest.raises(RuntimeError, match="in every replay"):
        capturable.step(loss=1.0)
    assert param.equal(torch.ones(2))
    assert int(capturable.emotion.felt) == 0
