"""Tests that need a GPU: no step waits for the GPU, a graph can capture a step, and all ways agree."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch._kernels import cuda
from emo_torch._members.by_name import MEMBERS as REGISTRY
from emo_torch._testing import COMPILED_MEMBERS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU WAS FOUND")

MEMBERS = COMPILED_MEMBERS
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2}
SHAPES = ((), (7,), (0,), (33, 65), (64, 8), (64, 8), (3, 4, 5), (70_001,), (301, 700))
LOSSES = (2.0, 2.1, float("nan"), 9.0, 2.0, 1.9)
WAYS = {"single": {"foreach": False}, "multi": {"foreach": True}, "fused": {"fused": True}}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Returns the options of a way to step."""
    if request.param == "fused" and not cuda.is_available():
        pytest.skip("TRITON IS NOT INSTALLED")
    return WAYS[request.param]


@pytest.fixture
def no_sync() -> Iterator[None]:
    """Raises an error if the process waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _start(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    return [torch.nn.Parameter(param.to("cuda", dtype)) for param in drawn]


def _options(name: str, **more: Any) -> dict[str, Any]:
    if name == "ref_adamw_mini_schedule_free":
        return {"lr": 1e-2, "ref_max_steps": 10, **more}
    member = REGISTRY[name]
    rate = 20.0 if member.generation == 3 else 1e-2  # The pulse is about 1e-4 of the rate.
    options: dict[str, Any] = {"lr": rate, "weight_decay": 0.1, **more}
    if "use_shadow" in inspect.signature(member.make).parameters:
        options["use_shadow"] = True
    if name in ("emo_sens", "emo_airy", "emo_cats"):
        options["theta"] = 0.3  # The filter stops some elements.
    return options


def _can(name: str, way: dict[str, Any]) -> None:
    if way.get("fused") and not REGISTRY[name].make.has_cuda_kernel:
        pytest.skip("it has no kernel for CUDA")


def _give_gradients(params: list[Tensor], generator: torch.Generator) -> None:
    """Gives gradients, in place if there are gradients: a graph reads the addresses of its capture."""
    for param in params:
        gradient = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        gradient *= torch.rand(param.shape, generator=generator) > 0.2
        if param.grad is None:
            param.grad = torch.empty_like(param)
        param.grad.copy_(gradient)


def _train(name: str, dtype: torch.dtype, **options: Any) -> list[Tensor]:
    params = _start(dtype)
    optimizer = emo_torch.create_optimizer(name, params, **_options(name, **options))
    generator = torch.Generator().manual_seed(3)
    for loss in LOSSES:
        _give_gradients(params, generator)
        optimizer.step(loss=torch.tensor(loss, device="cuda"))
    return [param.detach() for param in params]


def _assert_close(ours: list[Tensor], theirs: list[Tensor], bound: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("mode", ["decoupled", "absolute", "l2"])
@pytest.mark.parametrize("name", MEMBERS)
def test_every_way_equals_the_readable_one(
    name: str, mode: str, dtype: torch.dtype, way: dict[str, Any]
) -> None:
    _can(name, way)
    options: dict[str, Any] = {"weight_decay_mode": mode, "maximize": mode == "absolute"}
    ours = _train(name, dtype, **way, **options)
    _assert_close(ours, _train(name, dtype, foreach=False, **options), BOUNDS[dtype])


@pytest.mark.parametrize("lr", [1e-2, "a tensor"])
@pytest.mark.parametrize("name", MEMBERS)
def test_no_step_waits_for_the_device(
    name: str, lr: float | str, way: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    _can(name, way)
    params = _start(torch.float32)
    rate = torch.tensor(1e-2, device="cuda") if isinstance(lr, str) else lr
    optimizer = emo_torch.create_optimizer(name, params, **_options(name, capturable=True, **way, lr=rate))
    generator, loss = torch.Generator().manual_seed(3), torch.tensor(1.0, device="cuda")
    _give_gradients(params, generator)
    optimizer.step(loss=loss)  # The first step makes the state.
    request.getfixturevalue("no_sync")
    for _ in range(3):
        for param in params:
            # Gradients at other addresses, as after zero_grad().
            param.grad = None if param.grad is None else param.grad.clone()
        optimizer.step(loss=loss)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_captured_step_replays_as_eager_steps(name: str, way: dict[str, Any]) -> None:
    _can(name, way)
    found = []
    for captures in (False, True):
        params = _start(torch.float32)
        rate = torch.tensor(1e-2, device="cuda")
        optimizer = emo_torch.create_optimizer(
            name, params, **_options(name, capturable=True, **way, lr=rate)
        )
        generator, loss = torch.Generator().manual_seed(3), torch.tensor(2.0, device="cuda")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                _give_gradients(params, generator)
                optimizer.step(loss=loss)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        if captures:
            with torch.cuda.graph(graph):
                optimizer.step(loss=loss)
        for number in LOSSES:
            _give_gradients(params, generator)
            loss.fill_(number)
            rate.mul_(0.9)
            if captures:
                graph.replay()
            else:
                optimizer.step(loss=loss)
        found.append([param.detach() for param in params])
    eager, replayed = found
    _assert_close(replayed, eager, 1e-6)


def test_on_cuda_fused_is_never_chosen_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "step", None)
    params = _start(torch.float32)
    for param in params:
        param.grad = torch.ones_like(param)
    emo_torch.EmoSens(params).step(loss=1.0)
