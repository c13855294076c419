"""EmoPilot, EmoPilotAiry and Autopilot: averaged weights, damaged states, and steps that are not finite."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import emo_torch


def steered(params: list[Parameter]) -> emo_torch.Autopilot:
    return emo_torch.Autopilot(torch.optim.AdamW(params, lr=1e-2))


MAKERS: dict[str, Callable[[Any], Any]] = {
    "EmoPilot": emo_torch.EmoPilot,
    "EmoPilotAiry": emo_torch.EmoPilotAiry,
    "Autopilot": steered,
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
members = pytest.mark.parametrize("make", [MAKERS["EmoPilot"], MAKERS["EmoPilotAiry"]])


def weights() -> Parameter:
    return Parameter(torch.linspace(0.5, 2.0, 8))


def train(optimizer: Any, param: Parameter, steps: int = 30) -> None:
    for _ in range(steps):
        param.grad = 2.0 * param.detach()
        optimizer.step(loss=param.detach().float().square().sum())


@every
def test_missing_state_is_made_in_eval_mode_without_a_step(make: Callable[..., Any]) -> None:
    param = weights()
    start, optimizer = param.detach().clone(), make([param])
    optimizer.eval()
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:  # As torch.distributed.checkpoint does.
        group["lr"] = 0.0
    param.grad = torch.zeros_like(param)
    optimizer.step()
    assert optimizer.state[param]
    with pytest.raises(RuntimeError, match=r"optimizer\.train\(\)"):
        optimizer.step(loss=1.0)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    with pytest.raises(RuntimeError, match=r"optimizer\.train\(\)"):
        optimizer.step()
    assert torch.equal(param, start)
    optimizer.train()
    assert torch.equal(param, start)
    train(optimizer, param, 3)


@members
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_without_averages_keeps_the_trained_weights_of_eval_mode(
    make: Callable[..., Any], dtype: torch.dtype
) -> None:
    param = Parameter(weights().detach().to(dtype))
    optimizer = make([param])
    train(optimizer, param)
    trained = param.detach().clone()
    optimizer.eval()
    average = param.detach().clone()
    assert not torch.equal(average, trained)
    moments = {"step", "exp_avg", "exp_avg_sq"} if make is emo_torch.EmoPilot else set()
    state = optimizer.state_dict()
    kept = {name: value for name, value in state["state"][0].items() if name in moments}
    group = {"lr": 1e-3, "params": [0]}
    optimizer.load_state_dict({"state": {0: kept} if kept else {}, "param_groups": [group]})
    assert torch.equal(param, average)
    optimizer.train()
    assert torch.equal(param, trained)


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_a_state_of_autopilot_without_its_changes_is_refused(kind: str) -> None:
    param = weights()
    optimizer = emo_torch.Autopilot(getattr(torch.optim, kind)([param], lr=1e-2))
    train(optimizer, param, 5)
    state = copy.deepcopy(optimizer.state_dict())
    cut = copy.deepcopy(state)
    for own in cut["state"].values():
        for name in [name for name in own if name.startswith("autopilot_")]:
            del own[name]
    with pytest.raises(ValueError, match="flatten_optimizer_state_dict=True"):
        optimizer.load_state_dict(cut)
    assert str(optimizer.state_dict()) == str(state)
    optimizer.load_state_dict(state)


@pytest.mark.parametrize("wrap", [emo_torch.Autopilot, emo_torch.Emotional])
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_the_change_of_a_parameter_that_is_listed_twice_is_scaled_once(wrap: Callable[..., Any]) -> None:
    ends = []
    for times in (1, 2):
        param = weights()
        optimizer = wrap(torch.optim.SGD([param] * times, lr=0.02 / times))
        for step in range(10):
            param.grad = torch.full_like(param, 1.0 + step % 3)
            optimizer.step(loss=1.0 + 0.05 * step)
        ends.append(param.detach())
    torch.testing.assert_close(*ends, rtol=1e-6, atol=0.0)


@every
@pytest.mark.filterwarnings("ignore:Autopilot reads each step")
def test_a_state_of_eval_mode_keeps_its_average_in_narrower_weights(make: Callable[..., Any]) -> None:
    param = weights()
    optimizer = make([param])
    train(optimizer, param)
    trained = param.detach().clone()
    optimizer.eval()
    average = param.detach().clone()
    assert (average - trained).abs().max() > 0.1

    narrow = Parameter(average.bfloat16())
    other = make([narrow])
    other.load_state_dict(optimizer.state_dict())
    other.train()
    torch.testing.assert_close(narrow.float(), trained, rtol=1e-2, atol=1e-2)
    other.eval()
    torch.testing.assert_close(narrow.float(), average, rtol=1e-2, atol=1e-2)


@every
def test_parameters_over_the_same_memory_get_their_trained_values_back(make: Callable[..., Any]) -> None:
    base = torch.tensor([1.0, -2.0, 0.5, 3.0])
    pair = [Parameter(base), Parameter(base.view(2, 2))]
    optimizer = make(pair)
    for _ in range(10):
        for param in pair:
            param.grad = torch.ones_like(param)
        optimizer.step(loss=1.0)
    trained = base.clone()
    optimizer.eval()
    assert not torch.equal(base, trained)
    optimizer.train()
    assert torch.equal(base, trained)


@every
def test_an_average_that_was_switched_off_does_not_come_back(make: Callable[..., Any]) -> None:
    param = weights()
    optimizer = make([param])
    train(optimizer, param, 5)
    optimizer.param_groups[0]["average"] = False
    train(optimizer, param, 20)
    trained = param.detach().clone()
    optimizer.eval()
    assert torch.equal(param, trained)


@members
def test_an_expanded_parameter_is_refused(make: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"expanded parameter, here of the shape \(4, 3\).*clone"):
        make([Parameter(torch.ones(1, 3).expand(4, 3))])
    make([Parameter(torch.ones(1, 3).expand(0, 3))])  # Without elements nothing is shared.


DAMAGED_SCALARS: list[tuple[str, Any]] = [
    ("pilot_norm", None),
    ("pilot_norm", "x"),
    ("pilot_norm", torch.zeros([], device="meta")),
    ("pilot_norm", torch.zeros(3)),
    ("pilot_norm", math.nan),
    ("pilot_courage", math.nan),
    ("pilot_step", 2.5),
    ("pilot_step", -2),
]
DAMAGED_AVERAGES: list[Any] = [None, 1, True, torch.ones(8, dtype=torch.int32), torch.ones(3)]


def check_refused(optimizer: Any, param: Parameter, damaged: dict[str, Any]) -> None:
    before, values = copy.deepcopy(optimizer.state_dict()), param.detach().clone()
    with pytest.raises((TypeError, ValueError), match=r"damaged|peak_lr"):
        optimizer.load_state_dict(damaged)
    assert torch.equal(param, values)
    after = optimizer.state_dict()
    for old, new in zip(before["param_groups"], after["param_groups"], strict=True):
        assert all(
            torch.equal(torch.as_tensor(old[n]), torch.as_tensor(new[n])) for n in old if "pilot" in n
        )
    assert all(torch.equal(value, after["state"][0][name]) for name, value in before["state"][0].items())


@every
@pytest.mark.parametrize(("name", "value"), DAMAGED_SCALARS)
def test_a_state_with_damaged_scalars_is_refused(make: Callable[..., Any], name: str, value: Any) -> None:
    param = weights()
    optimizer = make([param])
    train(optimizer, param, 3)
    damaged = copy.deepcopy(optimizer.state_dict())
    damaged["param_groups"][0][name] = value
    check_refused(optimizer, param, damaged)


@every
@pytest.mark.parametrize("value", DAMAGED_AVERAGES, ids=str)
def test_a_state_with_damaged_averages_is_refused(make: Callable[..., Any], value: Any) -> None:
    param = weights()
    optimizer = make([param])
    train(optimizer, param, 3)
    damaged = copy.deepcopy(optimizer.state_dict())
    (name,) = (name for name in damaged["state"][0] if name.endswith("average"))
    damaged["state"][0][name] = value
    check_refused(optimizer, param, damaged)


@members
@pytest.mark.parametrize("value", ["x", None, -1.0, math.nan, torch.ones(2)], ids=str)
def test_a_state_with_a_damaged_peak_is_refused(make: Callable[..., Any], value: Any) -> None:
    param = weights()
    optimizer = make([param])
    train(optimizer, param, 3)
    damaged = copy.deepcopy(optimizer.state_dict())
    damaged["param_groups"][0]["peak_lr"] = value
    check_refused(optimizer, param, damaged)


@members
@pytest.mark.parametrize("rate", [math.nan, math.inf])
def test_a_step_with_a_learning_rate_that_is_not_finite_is_skipped(
    make: Callable[..., Any], rate: float
) -> None:
    runs = []
    for rates in ([1e-2, rate, 1e-2], [1e-2, 1e-2]):
        param = weights()
        optimizer = make([param])
        optimizer.param_groups[0]["lr"] = torch.tensor(1e-2)
        for each in rates:
            optimizer.param_groups[0]["lr"].fill_(each)
            train(optimizer, param, 1)
        runs.append((param, optimizer))
    (param, optimizer), (plain, twin) = runs
    assert torch.equal(param, plain)
    assert int(optimizer.pilot.skipped) == 1
    assert optimizer.param_groups[0]["peak_lr"] == twin.param_groups[0]["peak_lr"]


# Autopilot alone.


def test_a_state_of_the_inner_optimizer_alone_leaves_the_averages() -> None:
    param, other = weights(), weights()
    plain = torch.optim.AdamW([other], lr=1e-2)
    other.grad = torch.ones(8)
    plain.step()
    optimizer = steered([param])
    train(optimizer, param)
    trained = param.detach().clone()
    optimizer.eval()
    optimizer.load_state_dict(plain.state_dict())
    optimizer.train()
    assert torch.equal(param, trained)


@pytest.mark.filterwarnings("ignore:Autopilot reads each step")  # Of weights of float16.
@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 1e2), (torch.float32, 1e17)])
def test_a_change_that_is_not_finite_is_no_change(dtype: torch.dtype, size: float) -> None:
    param, calm = (Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=dtype)) for _ in range(2))
    values = param.detach().clone()
    optimizer = emo_torch.Autopilot(torch.optim.SGD([param, calm], lr=1e3))
    param.grad, calm.grad = param.detach() * size, torch.full_like(calm, 1e-4)
    optimizer.step(loss=1.0)
    assert torch.equal(param, values)
    assert not torch.equal(calm, values)
    assert math.isfinite(optimizer.pilot.learning_rate)
    param.grad, calm.grad = (torch.full_like(values, 1e-4) for _ in range(2))
    optimizer.step(loss=1.0)
    assert not torch.equal(param, values)
    assert all(bool(each.isfinite().all()) for each in (param, calm))


def test_an_error_of_the_inner_step_leaves_weights_and_gradients() -> None:
    class Failing(torch.optim.SGD):
        fails = False

        def step(self, closure: Any = None) -> Any:
            if self.fails:
                self.fails = False
                raise MemoryError
            return super().step(closure)

    runs = []
    for fails in (True, False):
        param = Parameter(torch.ones(3))
        optimizer = emo_torch.Autopilot(Failing([param], lr=1e-2))
        for size in (1.0, 1.0, 1.0, 100.0):
            param.grad = torch.full((3,), size)
            if fails and size == 100.0:
                optimizer.inner.fails = True  # type: ignore[attr-defined]
                with pytest.raises(MemoryError):
                    optimizer.step(loss=1.0)
                assert torch.equal(param.grad, torch.full((3,), size))
            optimizer.step(loss=1.0)
        runs.append((param.detach().clone(), float(optimizer.pilot.gate)))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1] == pytest.approx(0.025)


def test_narrow_weights_are_warned_of_once() -> None:
    narrow = Parameter(torch.ones(3, dtype=torch.bfloat16))
    with pytest.warns(emo_torch.EmoWarning, match=r"weights of torch\.bfloat16.*EmoPilot"):
        steered([narrow])
    steered([narrow])  # A second warning would be an error.
