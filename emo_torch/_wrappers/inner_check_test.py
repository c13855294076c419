"""The findings about an optimizer before it is made emotional, and that each finding is right."""

import copy
import random
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_pre_hook

import emo_torch
from emo_torch._wrappers.any_optimizer_test import LOSSES, OPTIMIZERS, give_gradients, parameters
from emo_torch._wrappers.inner_check import Manner, manner_of

NOT_LINEAR = {"Adafactor", "ASGD", "Rprop"}
every_linear = pytest.mark.parametrize(
    "make",
    [make for name, make in OPTIMIZERS.items() if name not in NOT_LINEAR],
    ids=lambda make: make.__name__,
)


class SlowWeights(torch.optim.SGD):
    """Pulls the parameters to an average of where they were."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for param in group["params"]:
                    state = self.state[param]
                    slow = state.setdefault("slow", param.clone())
                    slow.lerp_(param, 0.1)
                    param.lerp_(slow, 0.5)
        return result


class AddsUp(torch.optim.SGD):
    """Makes its steps longer by how far it has gone, which it adds up from its learning rate."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self.param_groups[0]["gone"] = 0.0

    def step(self, closure: Any = None) -> Any:
        group = self.param_groups[0]
        lr, group["lr"] = group["lr"], group["lr"] * (1.0 + group["gone"])
        result = super().step(closure)
        group["lr"] = lr
        group["gone"] += lr
        return result


class Estimates(torch.optim.SGD):
    """Makes its steps longer for as long as the gradients point the same way."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self.length = 1.0

    def step(self, closure: Any = None) -> Any:
        group = self.param_groups[0]
        lr, group["lr"] = group["lr"], group["lr"] * self.length
        with torch.no_grad():
            self.length += group["lr"] * sum(float(param.grad.abs().sum()) for param in group["params"])
        result = super().step(closure)
        group["lr"] = lr
        return result


class KeepsItsRate(torch.optim.Optimizer):
    """Steps with the rate that it had when it began, and keeps where it was."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                if "last" not in state:
                    state["rate"] = group["lr"]
                state["last"] = param.clone()
                param.sub_(param.grad * state["rate"])
        return closure


class SumsFromTheBeginning(torch.optim.Optimizer):
    """Adagrad as of PyTorch 2.11: the sums exist before the first step, and a step makes none."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        for param in self.param_groups[0]["params"]:
            self.state[param]["sum"] = torch.zeros_like(param)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for param in group["params"]:
                total = self.state[param]["sum"].addcmul_(param.grad, param.grad)
                param.addcdiv_(param.grad, total.sqrt() + 1e-10, value=-group["lr"])
        return closure


class NeedsClosure(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        if closure is None:
            raise RuntimeError("a closure, please")
        return super().step(closure)


def params() -> list[Parameter]:
    return [Parameter(torch.ones(3, 4)), Parameter(torch.ones(5))]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizers_of_torch_are_told_apart(name: str) -> None:
    make = OPTIMIZERS[name]
    found = manner_of(make(parameters(make), lr=0.1))
    assert found.is_linear == (name not in NOT_LINEAR)
    assert bool(found.follows) == (name == "ASGD")
    assert not found.needs_closure


def test_what_keeps_track_of_the_parameters_is_found() -> None:
    slow = manner_of(SlowWeights(params(), lr=0.1))
    assert {name.split(".")[1] for name in slow.follows} == {"slow"}
    assert slow.obeys_rate
    assert not slow.is_linear
    adds = manner_of(AddsUp(params(), lr=0.1))
    assert adds.follows == ("group 0.gone",)
    assert adds.obeys_rate
    assert adds.estimates == slow.estimates == ()  # By their rates alone, not by the gradients.
    estimates = manner_of(Estimates(params(), lr=0.1))
    assert estimates.follows == estimates.estimates == ("self.length",)
    kept = manner_of(KeepsItsRate(params(), lr=0.1))
    assert {name.split(".")[1] for name in kept.follows} == {"last"}
    assert not kept.obeys_rate
    assert manner_of(NeedsClosure(params(), lr=0.1)).needs_closure


def test_a_sum_that_starts_at_0_does_not_count_as_tracking_a_parameter_of_zeros() -> None:
    given = [Parameter(torch.ones(3, 4)), Parameter(torch.zeros(5))]
    found = manner_of(SumsFromTheBeginning(given, lr=0.1))
    assert not found.follows
    assert found.is_linear


def test_weight_decay_is_no_memory_of_the_parameters() -> None:
    for decay in (0.0, 0.1, 1.0):
        assert manner_of(torch.optim.SGD(params(), lr=0.1, momentum=0.9, weight_decay=decay)).follows == ()
        assert manner_of(torch.optim.AdamW(params(), lr=0.1, weight_decay=decay)).is_linear


def test_the_optimizer_and_its_surroundings_are_left_alone() -> None:
    given = params()
    optimizer = torch.optim.AdamW(given, lr=0.1, weight_decay=0.123)
    lr_scheduler.StepLR(optimizer, 3)  # Puts a step into the optimizer that steps that optimizer.
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("own"))
    handle = register_optimizer_step_pre_hook(lambda *_: calls.append("global"))
    seen = vars(optimizer).copy()
    groups = copy.deepcopy([{**group, "params": None} for group in optimizer.param_groups])
    state, ours = torch.get_rng_state(), random.getstate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert manner_of(optimizer).is_linear
    assert calls == []
    assert all(torch.equal(param, torch.ones_like(param)) and param.grad is None for param in given)
    assert vars(optimizer) == seen
    assert [{**group, "params": None} for group in optimizer.param_groups] == groups
    assert not optimizer.state
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == ours
    given[0].grad = torch.ones(3, 4)
    optimizer.step()
    assert calls == ["global", "own"]
    handle.remove()


def test_an_answer_is_cached_for_a_class_and_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    import emo_torch._wrappers.inner_check as module

    looked: list[Any] = []
    examine = module._examine

    def look(inner: Any) -> Manner:
        looked.append(inner)
        return examine(inner)

    monkeypatch.setattr(module, "_examine", look)

    class Own(torch.optim.SGD):
        pass

    for options in ({}, {"lr": 0.5}, {"momentum": 0.9}, {"momentum": 0.9, "lr": 2.0}):
        module.manner_of(Own(params(), **options))  # type: ignore[arg-type]
    assert len(looked) == 2


def test_an_optimizer_that_cannot_be_copied_is_taken_for_nothing_special() -> None:
    class Stubborn(torch.optim.SGD):
        never: Any = None

        def step(self, closure: Any = None) -> Any:
            if self.param_groups[0]["params"][0].shape != (3, 4) or self.never:
                raise ArithmeticError
            return super().step(closure)

    inner = Stubborn(params(), lr=0.1)
    inner.never = open
    assert manner_of(inner) == Manner()


def changes(optimizer: Any, given: list[Parameter], steps: int = 8) -> list[Tensor]:
    for step in range(steps):
        give_gradients(given, step)
        optimizer.step(loss=LOSSES[step % 8])
    return [param.detach().double() for param in given]


@every_linear
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("use_shadow", [False, True])
def test_scaling_the_rate_is_scaling_the_change(make: Any, dtype: torch.dtype, use_shadow: bool) -> None:
    runs = []
    for through_lr in (False, None, True):
        given = parameters(make, dtype)
        inner = make(given, lr=0.1)
        options: dict[str, Any] = {"gain": 0.4, "use_shadow": use_shadow, "theta": 0.3}
        optimizer = emo_torch.Emotional(inner, through_lr=through_lr, **options)
        runs.append(changes(optimizer, given))
        assert inner.param_groups[0]["lr"] == 0.1
    rtol, atol = (1e-12, 1e-12) if dtype == torch.float64 else (1e-5, 1e-6)
    if make is torch.optim.Muon:  # Computes in bfloat16; both ways with the same numbers.
        rtol, atol = max(rtol, 1e-6), max(atol, 1e-6)
    for scaled, found, asked in zip(*runs, strict=True):
        torch.testing.assert_close(found, scaled, rtol=rtol, atol=atol)
        torch.testing.assert_close(asked, scaled, rtol=rtol, atol=atol)


def test_the_way_can_be_chosen() -> None:
    with pytest.raises(TypeError, match="Invalid through_lr"):
        emo_torch.Emotional(torch.optim.SGD(params()), through_lr=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"KeepsItsRate keeps track .*last.* pass through_lr=False"):
        emo_torch.Emotional(KeepsItsRate(params(), lr=0.1))
    emo_torch.Emotional(KeepsItsRate(params(), lr=0.1), through_lr=False)
    with pytest.raises(ValueError, match=r"SlowWeights keeps track .*slow.* Pass use_shadow=False"):
        emo_torch.Emotional(SlowWeights(params(), lr=0.1), use_shadow=True)
    with pytest.raises(ValueError, match=r"Estimates estimates .*self\.length.* pass through_lr=True"):
        emo_torch.Emotional(Estimates(params(), lr=0.1))
    optimizer = emo_torch.Emotional(SlowWeights(params(), lr=0.1))
    with pytest.raises(ValueError, match="Pass use_shadow=False"):
        optimizer.add_param_group({"params": [Parameter(torch.ones(2))], "use_shadow": True})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("make", "through_lr"),
    [(SlowWeights, None), (AddsUp, None), (Estimates, True)],
    ids=["SlowWeights", "AddsUp", "Estimates"],
)
def test_what_keeps_track_goes_where_its_own_rate_sends_it(make: Any, through_lr: bool | None) -> None:
    given, theirs = params(), params()
    optimizer = emo_torch.Emotional(make(given, lr=0.1), gain=0.4, through_lr=through_lr)
    alone = make(theirs, lr=0.1)
    emotion = emo_torch.init_emotion(torch.float32)
    for step in range(8):
        for some in (given, theirs):
            for param in some:
                param.grad = torch.full_like(param, 1.0 + step)
        optimizer.step(loss=LOSSES[step])
        emotion = emo_torch.feel(emotion, torch.tensor(LOSSES[step]), gain=0.4)
        alone.param_groups[0]["lr"] = 0.1 * float(1.0 - emotion.scalar.abs())
        alone.step()
    for ours, other in zip(given, theirs, strict=True):
        assert torch.equal(ours, other)


def test_stopped_elements_keep_their_value_in_tracking_state() -> None:
    given = [Parameter(torch.tensor([1.0, 2.0, 3.0]))]
    optimizer = emo_torch.Emotional(SlowWeights(given, lr=0.1))
    for step, grad in enumerate(([1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 1.0])):
        before = given[0].detach().clone()
        slow = {**optimizer.state[given[0]]}.get("slow", before).clone()
        given[0].grad = torch.tensor(grad)
        optimizer.step(loss=1.0 + 0.01 * step)
        rests = torch.tensor(grad) == 0.0
        assert torch.equal(given[0].detach()[rests], before[rests])
        assert torch.equal(optimizer.state[given[0]]["slow"][rests], slow[rests])
        assert not torch.equal(given[0].detach()[0], before[0])


def test_the_average_of_asgd_is_one_of_where_the_parameters_were() -> None:
    weight = Parameter(torch.zeros(3))
    inner = torch.optim.ASGD([weight], lr=0.1, t0=0)
    optimizer = emo_torch.Emotional(inner, theta=0.3, gain=0.3)
    places = []
    for step in range(12):
        weight.grad = torch.tensor([1.0, -1.0, 1e-3]) * (1.0 + step)
        optimizer.step(loss=LOSSES[step % 8])
        places.append(weight.detach().clone())
    torch.testing.assert_close(inner.state[weight]["ax"], torch.stack(places[1:]).mean(0))


@pytest.mark.parametrize("theta", [0.0, 1e-4])
def test_a_step_makes_no_tensor_of_a_parameters_size(theta: float) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Sizes(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.largest = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = {id(value) for value in [*args, *(kwargs or {}).values()]}
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and id(result) not in given:
                self.largest = max(self.largest, result.numel())
            return result

    given = [Parameter(torch.ones(300, 300))]
    largest = {}
    for through_lr in (None, False):
        optimizer = emo_torch.Emotional(
            torch.optim.AdamW(given, lr=0.1, fused=True), theta=theta, through_lr=through_lr
        )
        for _ in range(2):
            given[0].grad = torch.ones(300, 300)
            with Sizes() as sizes:
                optimizer.step(loss=1.0)
        largest[through_lr] = sizes.largest
    assert largest[False] >= 300 * 300
    from emo_torch._kernels import library

    assert largest[None] <= (2**8 if library() is not None or theta == 0.0 else 2**16 + 2**14 + 300 * 300)
