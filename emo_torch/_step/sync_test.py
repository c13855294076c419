"""A step waits for no device, and compiles to one graph."""

from collections.abc import Iterator
from typing import Any, Self
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import emo_torch
from emo_torch._pieces import emotion as _emotion
from emo_torch._step.step_test import FAMILY, equal, model


@pytest.fixture(params=FAMILY, ids=lambda cls: str(cls.__name__))
def cls(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=[False, True], ids=["single", "foreach"])
def foreach(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


# Nothing waits for the device.


class NoSync(TorchDispatchMode):
    """Raises an error if a number is read from a tensor, as if every tensor were on a device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.far = mock.patch.object(_emotion, "IS_CPU_READ", new=False)

    def __enter__(self) -> Self:
        self.far.start()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.far.stop()

    READS = frozenset(
        {
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.item.default,
            torch.ops.aten.is_nonzero.default,
            torch.ops.aten.equal.default,
        }
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.READS:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_sync() -> Iterator[None]:
    with NoSync():
        yield


def test_the_watch_for_syncs_sees_one() -> None:
    for read in (lambda t: t.item(), bool, float, int, lambda t: [1, 2, 3][t]):
        with pytest.raises(AssertionError, match="waits for the device"), NoSync():
            read(torch.tensor(1))


@pytest.mark.parametrize("mode", ["decoupled", "absolute", "l2"])
@pytest.mark.parametrize("lr", ["float", "tensor", "tensor of one"])
def test_a_step_never_waits_for_the_device(cls: Any, foreach: bool, lr: str, mode: str) -> None:
    maximize = (lr == "tensor") != (mode == "l2")  # A sign; with each rate and each mode.
    rates = {"float": 0.1, "tensor": torch.tensor(0.1), "tensor of one": torch.tensor([0.1])}
    params = [
        torch.nn.Parameter(torch.ones(shape, dtype=dtype))
        for shape in ((), (3,), (2, 3), (0, 2))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    optimizer = cls(
        [{"params": params[:4]}, {"params": params[4:], "weight_decay": 0.2}],
        lr=rates[lr],
        foreach=foreach,
        use_shadow=True,
        weight_decay_mode=mode,
        maximize=maximize,
    )
    losses = [torch.tensor(loss) for loss in (1.0, 5.0, float("nan"), 2.0)]
    for param in params:
        param.grad = torch.ones_like(param)
    with NoSync():
        for loss in (*losses, 3.0, torch.ones(1, dtype=torch.float64)):
            optimizer.step(loss=loss)
            optimizer.step(lambda loss=loss: loss)
            look = optimizer.emotion
    assert int(look.felt) == 10
    assert int(look.held) == 2


@pytest.mark.parametrize("kind", [emo_torch.EmoSens, emo_torch.EmoCats])
def test_a_captured_step_with_moments_in_8_bits_never_waits_for_the_device(kind: Any) -> None:
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((64, 64), (3,))]
    optimizer = kind(params, moment_dtype="8bit", capturable=True)
    for param in params:
        param.grad = torch.randn_like(param)
    before = params[0].detach().clone()
    with NoSync():
        for number in (1.0, 2.0, 1.0):
            optimizer.step(loss=torch.tensor(number))
    assert optimizer.state[params[0]]["exp_avg"].dtype == torch.uint8
    assert not params[0].equal(before)


@pytest.mark.parametrize("ratio", ["v1.0", "v2.0", torch.abs])
def test_no_shadow_ratio_waits_for_the_device(no_sync: None, ratio: Any) -> None:  # noqa: ARG001
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = emo_torch.EmoSens([param], use_shadow=True, shadow_ratio=ratio)
    param.grad = torch.ones(3)
    for loss in (1.0, 2.0, 1.0):
        optimizer.step(loss=torch.tensor(loss))


def test_only_should_stop_waits_for_the_device() -> None:
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = emo_torch.EmoSens([param])
    with pytest.raises(AssertionError, match="waits for the device"), NoSync():
        assert not optimizer.should_stop


# Compiled.


@pytest.mark.parametrize("use_shadow", [False, True], ids=["plain", "shadow"])
def test_a_step_compiles_to_one_graph(cls: Any, foreach: bool, use_shadow: bool) -> None:
    plain, compiled = model(), model()
    ours = cls(plain.parameters(), foreach=foreach, use_shadow=use_shadow)
    theirs = cls(compiled.parameters(), foreach=foreach, use_shadow=use_shadow)
    for net, optimizer in ((plain, ours), (compiled, theirs)):
        for param in net.parameters():
            param.grad = torch.ones_like(param)
        optimizer.step(loss=torch.tensor(1.0))
    torch._dynamo.reset()

    @torch.compile(backend="eager", fullgraph=True)
    def step(loss: Tensor) -> None:
        theirs.step(loss=loss)

    for number in (2.0, 3.0, 1.0):
        ours.step(loss=torch.tensor(number))
        step(torch.tensor(number))
    assert equal(plain, compiled)
    assert ours.emotion == theirs.emotion
