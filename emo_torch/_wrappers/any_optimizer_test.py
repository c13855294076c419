"""Every optimizer of torch.optim, made emotional: its steps, and its use with the rest of torch."""

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import emo_torch

EXCEPTIONS = {
    "LBFGS": "calls its closure several times a step, and remembers where it sent the parameters",
    "SparseAdam": "takes sparse gradients alone, which the emotion's filter does not read",
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    name: cls
    for name, cls in vars(torch.optim).items()
    if inspect.isclass(cls)
    and issubclass(cls, torch.optim.Optimizer)
    and name not in ("Optimizer", *EXCEPTIONS)
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
LOSSES = (1.0, 3.0, 2.5, 2.4, float("nan"), 0.1, 2.0, 1.9)


def parameters(make: Any, dtype: torch.dtype = torch.float32) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (5,), (), (0, 2)]
    if make is torch.optim.Muon:  # Is for matrices.
        shapes = [(3, 4), (2, 5)]
    elif make is torch.optim.Adafactor:  # Divides by the number of elements.
        shapes.pop()
    return [Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def give_gradients(params: list[Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for param in params:
        grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        grad.view(-1)[:1] = 0.0
        param.grad = grad


def train(optimizer: Any, params: list[Parameter], steps: int = 8, first: int = 0) -> None:
    for step in range(first, first + steps):
        give_gradients(params, step)
        loss = {"loss": LOSSES[step % 8]} if isinstance(optimizer, emo_torch.EmoOptimizer) else {}
        optimizer.step(**loss)


def same(ours: list[Parameter], theirs: list[Parameter]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_every_optimizer_is_here_or_excepted() -> None:
    assert len(OPTIMIZERS) == 13
    classes = {name for name, cls in vars(torch.optim).items() if inspect.isclass(cls)}
    assert classes == {"Optimizer", *OPTIMIZERS, *EXCEPTIONS}


def test_the_exceptions_say_so_before_anything_changes() -> None:
    param = Parameter(torch.ones(3))
    with pytest.raises(TypeError, match="LBFGS calls the closure itself"):
        emo_torch.Emotional(torch.optim.LBFGS([param]))
    sparse = torch.optim.SparseAdam([param])
    param.grad = torch.ones(3).to_sparse()
    optimizer = emo_torch.Emotional(sparse)
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step(loss=1.0)
    assert torch.equal(param, torch.ones(3))
    assert int(optimizer.emotion.felt) == 0


@every_optimizer
def test_without_emotion_it_is_the_optimizer_to_the_last_bit(make: Any) -> None:
    alone, wrapped = parameters(make), parameters(make)
    train(make(alone, lr=0.1), alone)
    train(emo_torch.Emotional(make(wrapped, lr=0.1), gain=0.0, theta=0.0), wrapped)
    assert same(wrapped, alone)


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("use_shadow", [False, True])
def test_a_step_is_the_optimizers_own_filtered_and_scaled(
    make: Any, dtype: torch.dtype, use_shadow: bool
) -> None:
    if make is torch.optim.Muon and dtype == torch.float64:
        pytest.skip("computes in bfloat16, wherever it starts: compared there")
    params = parameters(make, dtype)
    optimizer = emo_torch.Emotional(make(params, lr=0.1), use_shadow=use_shadow, theta=0.3)
    shadows: list[Tensor | None] = [None] * len(params)
    for step, loss in enumerate(LOSSES):
        give_gradients(params, step)
        befores = [param.detach().clone() for param in params]
        # The optimizer inside, at the same place, alone.
        others = [Parameter(param.detach().clone()) for param in params]
        alone = make(others, lr=0.1)
        state = copy.deepcopy(optimizer.state_dict())
        for saved in state["state"].values():
            saved.pop("shadow", None), saved.pop("shadow_exists", None)
        state["state"] = {key: saved for key, saved in state["state"].items() if saved}
        alone.load_state_dict(state)
        optimizer.step(loss=loss)
        scalar = float(optimizer.emotion.scalar)
        ratio = abs(scalar) if use_shadow and abs(scalar) > 0.1 else 0.0
        for index, (param, before, other) in enumerate(zip(params, befores, others, strict=True)):
            wide = before.double()
            shadow = shadows[index]
            if ratio and shadow is not None:
                wide = (1 - ratio) * wide + ratio * shadow
                shadows[index] = shadow + 0.05 * (wide - shadow)
            elif ratio:
                shadows[index] = wide.clone()
            other.data.copy_(wide)
            other.grad = None if param.grad is None else param.grad.clone()
        starts = [other.detach().clone().double() for other in others]
        alone.step()
        for param, start, other in zip(params, starts, others, strict=True):
            assert param.grad is not None
            kept = (param.grad.double().abs() >= (0.3 * (1 + abs(scalar))) ** 3).double()
            expected = start + kept * (1 - abs(scalar)) * (other.detach().double() - start)
            rtol, atol = (1e-12, 1e-12) if dtype == torch.float64 else (2**-7, 1e-3)
            torch.testing.assert_close(param.detach().double(), expected, rtol=rtol, atol=atol)


@every_optimizer
@pytest.mark.parametrize("use_shadow", [False, True])
def test_one_by_one_is_all_at_once(make: Any, use_shadow: bool) -> None:
    if "foreach" not in inspect.signature(make).parameters:
        pytest.skip("has but one way")
    runs = []
    for foreach in (False, True):
        params = [*parameters(make), *parameters(make, torch.float64)]
        train(emo_torch.Emotional(make(params, lr=0.1, foreach=foreach), use_shadow=use_shadow), params)
        runs.append(params)
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@every_optimizer
@pytest.mark.parametrize("way", ["state_dict", "file", "pickle", "deepcopy"])
@pytest.mark.parametrize("use_shadow", [False, True])
def test_a_resumed_run_is_an_uninterrupted_one(make: Any, way: str, use_shadow: bool) -> None:
    whole = parameters(make, torch.bfloat16)
    uninterrupted = emo_torch.Emotional(make(whole, lr=0.1), use_shadow=use_shadow)
    train(uninterrupted, whole, 8)

    params = parameters(make, torch.bfloat16)
    optimizer = emo_torch.Emotional(make(params, lr=0.1), use_shadow=use_shadow)
    train(optimizer, params, 4)
    if way == "deepcopy":
        params, resumed = copy.deepcopy((params, optimizer))
    elif way == "pickle":
        params, resumed = pickle.loads(pickle.dumps((params, optimizer)))
    else:
        state = optimizer.state_dict()
        if way == "file":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        resumed = emo_torch.Emotional(make(params, lr=0.5))
        resumed.load_state_dict(state)
    train(resumed, params, 4, first=4)
    assert same(params, whole)
    for ours, theirs in zip(resumed.emotion, uninterrupted.emotion, strict=True):
        assert torch.equal(ours, theirs)
    assert resumed.state_dict()["state"].keys() == uninterrupted.state_dict()["state"].keys()


def test_it_shares_groups_and_state_and_adds_nothing_to_the_state() -> None:
    params = parameters(torch.optim.AdamW)
    inner = torch.optim.AdamW(params, lr=0.1)
    optimizer = emo_torch.Emotional(inner)
    assert isinstance(optimizer, torch.optim.Optimizer)
    train(optimizer, params, 3)
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state
    assert set(optimizer.state[params[0]]) == {"step", "exp_avg", "exp_avg_sq"}
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state
    for group in optimizer.state_dict()["param_groups"]:
        emotion = [value for name, value in group.items() if name.startswith("emotion_")]
        assert len(emotion) == 6 + 2 + 32
        assert all(value.shape == () for value in emotion)
    optimizer.zero_grad()
    assert all(param.grad is None for param in params)
    assert "Emotional AdamW (" in repr(optimizer)
    assert "emotion_" not in repr(optimizer)


def test_a_state_of_the_optimizer_alone_is_taken_over() -> None:
    params, others = parameters(torch.optim.AdamW), parameters(torch.optim.AdamW)
    alone = torch.optim.AdamW(params, lr=0.1)
    train(alone, params, 3)
    optimizer = emo_torch.Emotional(torch.optim.AdamW(others, lr=0.5), theta=0.25)
    train(optimizer, others, 2)
    optimizer.load_state_dict(alone.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.param_groups[0]["theta"] == 0.25
    assert int(optimizer.emotion.felt) == 2
    assert torch.equal(optimizer.state[others[0]]["exp_avg"], alone.state[params[0]]["exp_avg"])


def test_a_damaged_state_is_refused_before_anything_changes() -> None:
    params = parameters(torch.optim.SGD)
    optimizer = emo_torch.Emotional(torch.optim.SGD(params, lr=0.1), use_shadow=True)
    train(optimizer, params, 4)
    kept = copy.deepcopy(optimizer.state_dict())
    damaged = copy.deepcopy(kept)
    del damaged["param_groups"][0]["emotion_short"]
    damaged["param_groups"][0]["lr"] = 9.0
    with pytest.raises(ValueError, match="lacks a part of the emotion: emotion_short"):
        optimizer.load_state_dict(damaged)
    damaged = copy.deepcopy(kept)
    damaged["state"][0]["shadow"] = torch.ones(7)
    with pytest.raises(ValueError, match="other shapes: 'shadow'"):
        optimizer.load_state_dict(damaged)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.state[params[0]]["shadow"].shape == (3, 4)


@every_optimizer
@pytest.mark.parametrize("way", ["loss", "closure", "both"])
def test_the_loss_arrives_in_every_way(make: Any, way: str) -> None:
    params = parameters(make)
    optimizer = emo_torch.Emotional(make(params, lr=0.1))
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = torch.stack([param.square().sum() for param in params]).sum()
        loss.backward()
        return loss

    for _ in range(3):
        given = closure() if way == "loss" else None
        if way == "loss":
            returned = optimizer.step(loss=given)
        elif way == "closure":
            returned = optimizer.step(closure)
        else:
            returned = optimizer.step(closure, loss=3.0)
        assert isinstance(returned, Tensor)
    assert calls == [True] * 3
    assert int(optimizer.emotion.felt) == 3
    assert (float(optimizer.emotion.long) == 3.0) == (way == "both")


@every_optimizer
def test_a_missing_loss_is_an_error_and_changes_nothing(make: Any) -> None:
    params = parameters(make)
    optimizer = emo_torch.Emotional(make(params, lr=0.1), use_shadow=True)
    give_gradients(params, 0)
    with pytest.raises(emo_torch.LossMissingError, match="Pass it with"):
        optimizer.step()
    assert same(params, parameters(make))
    assert int(optimizer.emotion.felt) == 0
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()  # As distributed checkpoints do, to have the state made.
    assert same(params, parameters(make))


def test_a_loss_that_is_not_finite_is_held() -> None:
    params = parameters(torch.optim.SGD)
    optimizer = emo_torch.Emotional(torch.optim.SGD(params, lr=0.1))
    train(optimizer, params, 8)
    assert int(optimizer.emotion.held) == 1
    assert int(optimizer.emotion.felt) == 7
    assert all(torch.isfinite(param).all() for param in params)


def test_elements_that_rest_are_not_touched_even_where_the_optimizer_breaks_them() -> None:
    param = Parameter(torch.tensor([1.0, 2.0]))
    optimizer = emo_torch.Emotional(torch.optim.Adam([param], lr=0.1, eps=0.0))
    param.grad = torch.tensor([1.0, 0.0])
    optimizer.step(loss=1.0)  # Adam makes 0/0 of the second one.
    torch.testing.assert_close(param.detach(), torch.tensor([0.9, 2.0]))


def test_an_optimizer_that_changes_the_gradient_is_filtered_by_what_it_was_given() -> None:
    class AddsDecayToTheGradient(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for param in group["params"]:
                    param.grad.add_(param.detach())
            return super().step(closure)

    param = Parameter(torch.tensor([1.0, 2.0]))
    optimizer = emo_torch.Emotional(AddsDecayToTheGradient([param], lr=0.5))
    param.grad = torch.tensor([1.0, 0.0])
    optimizer.step(loss=1.0)
    assert torch.equal(param.detach(), torch.tensor([0.0, 2.0]))


def test_parameters_without_a_gradient_rest() -> None:
    params = parameters(torch.optim.AdamW)
    optimizer = emo_torch.Emotional(torch.optim.AdamW(params, lr=0.1, weight_decay=0.5), use_shadow=True)
    for step, loss in enumerate(LOSSES):
        give_gradients(params, step)
        params[1].grad = None
        optimizer.step(loss=loss)
    assert torch.equal(params[1], parameters(None)[1])
    assert params[1] not in optimizer.state


def test_shadows_come_back_when_the_optimizer_fails() -> None:
    class Fails(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise ArithmeticError(closure)

    param = Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    optimizer = emo_torch.Emotional(Fails([param]), use_shadow=True)
    with pytest.raises(ArithmeticError):
        optimizer.step(loss=1.0)
    assert set(optimizer.state[param]) == {"shadow", "shadow_exists"}


def test_an_inner_optimizer_that_reads_the_loss_gets_it() -> None:
    param = Parameter(torch.ones(2))
    inner = emo_torch.RefAdamWMiniScheduleFree([param])
    optimizer = emo_torch.Emotional(inner)
    for _ in range(3):
        param.grad = torch.ones(2)
        optimizer.step(loss=1.0)
    assert int(inner.divergence.felt) == 3
    with pytest.raises(emo_torch.LossMissingError):
        optimizer.step()


def test_a_step_without_a_loss_at_rate_zero_changes_no_state() -> None:
    param = Parameter(torch.ones(2))
    optimizer = emo_torch.Emotional(torch.optim.AdamW([param], lr=0.1))
    param.grad = torch.ones(2)
    optimizer.step(loss=1.0)
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0
    late = Parameter(torch.ones(2))
    late.grad = torch.zeros(2)  # As a checkpoint library asks for state.
    for _ in range(2):
        optimizer.step()
        after = optimizer.state_dict()["state"]
        assert all(torch.equal(after[0][name], value) for name, value in before["state"][0].items())
        if len(optimizer.param_groups) == 1:
            optimizer.add_param_group({"params": [late], "lr": 0.0})
    assert "exp_avg" in optimizer.state[late]
    assert torch.equal(late.detach(), torch.ones(2))
