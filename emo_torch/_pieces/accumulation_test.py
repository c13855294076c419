"""Losses that come at another time than the step, or several to a step."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import emo_torch

MEMBERS: list[Any] = [
    emo_torch.EmoSens,
    emo_torch.EmoAiry,
    emo_torch.EmoCats,
    emo_torch.EmoNeco,
    lambda params: emo_torch.Emotional(torch.optim.AdamW(params)),
]


def weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))


def felt(optimizer: Any) -> float:
    """The only loss that was felt."""
    assert int(optimizer.emotion.felt) == 1
    return float(optimizer.emotion.long)


def everything(optimizer: Any) -> list[float]:
    (param,) = optimizer.param_groups[0]["params"]
    return [*param.tolist(), *map(float, optimizer.emotion)]


# All ways agree.


def plainly(optimizer: Any, loss: Tensor) -> None:
    loss.backward()
    optimizer.step(loss=loss)


def watched(optimizer: Any, loss: Tensor) -> None:
    assert optimizer.watch(loss) is loss
    (loss / 3).mul(3 * 1024).div(1024).backward()
    optimizer.step()


def observed(optimizer: Any, loss: Tensor) -> None:
    loss.backward()
    optimizer.observe(loss)
    optimizer.step()


def in_a_closure(optimizer: Any, loss: Tensor) -> None:
    def closure() -> Tensor:
        loss.backward()
        return loss

    optimizer.step(closure)


def watched_in_a_closure(optimizer: Any, loss: Tensor) -> None:
    def closure() -> Tensor:
        optimizer.watch(loss).backward()
        return loss / 4  # As Lightning returns it with accumulation.

    optimizer.step(closure)


@pytest.mark.parametrize("way", [watched, observed, in_a_closure, watched_in_a_closure])
@pytest.mark.parametrize("make", MEMBERS)
def test_every_way_to_give_a_loss_takes_the_same_steps(make: Any, way: Callable[..., None]) -> None:
    results = []
    for deliver in (plainly, way):
        param = weight()
        optimizer = make([param])
        for factor in (1.0, 0.4, 2.0):
            optimizer.zero_grad()
            deliver(optimizer, factor * param.square().sum())
        results.append(everything(optimizer))
    assert results[0] == pytest.approx(results[1], rel=1e-6)


# Several losses, one step.


@pytest.mark.parametrize("way", ["watch", "observe"])
@pytest.mark.parametrize(
    ("reduction", "weights", "expected"),
    [
        ("mean", (1.0, 1.0, 1.0), 3.0),
        ("mean", (8, 4, 4), 2.5),
        ("sum", (1.0, 1.0, 1.0), 9.0),
        ("sum", (0.5, 0.25, 0.25), 2.5),
    ],
)
def test_several_losses_are_one(way: str, reduction: str, weights: Any, expected: float) -> None:
    param = weight()
    optimizer = emo_torch.EmoSens([param])
    for number, share in zip((1.0, 2.0, 6.0), weights, strict=True):
        loss = param.sum() * 0.0 + number
        if way == "watch":
            optimizer.watch(loss, share, reduction)
        (loss / 3).backward()
        if way == "observe":
            optimizer.observe(loss, share, reduction)
    optimizer.step()
    assert felt(optimizer) == expected


def test_the_mean_of_micro_batches_is_the_loss_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    inputs, results = torch.randn(12, 3), []
    for sizes in ((12,), (6, 6), (8, 4), (1, 2, 4, 5)):
        param = weight()
        optimizer = emo_torch.EmoSens([param], lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            for part in inputs.split(list(sizes)):
                loss = optimizer.watch((part @ param).square().mean(), weight=len(part))
                (loss * len(part) / 12).backward()
            optimizer.step()
        results.append(everything(optimizer))
    for others in results[1:]:
        assert others == pytest.approx(results[0], rel=1e-4)


def test_the_mean_of_equal_losses_is_that_loss_to_the_last_bit() -> None:
    optimizer = emo_torch.EmoSens([weight()])
    for share in (0.1, 0.7, 3.0):
        optimizer.observe(0.1, weight=share)
    optimizer.step()
    assert felt(optimizer) == float(np.float32(0.1))


def test_one_loss_that_is_not_finite_makes_the_step_s_loss_so_and_it_is_held() -> None:
    optimizer = emo_torch.EmoSens([weight()])
    for loss in (1.0, float("nan"), 2.0):
        optimizer.observe(loss)
    optimizer.step()
    assert int(optimizer.emotion.held) == 1
    optimizer.observe(1.0)
    optimizer.step()
    assert felt(optimizer) == 1.0


# The order of the sources of a loss.


def test_a_loss_given_to_the_step_goes_before_what_was_observed_and_forgets_it() -> None:
    optimizer = emo_torch.EmoSens([weight()])
    optimizer.observe(5.0)
    optimizer.step(lambda: 7.0, loss=3.0)
    assert felt(optimizer) == 3.0
    with pytest.raises(emo_torch.LossMissingError):
        optimizer.step()


def test_what_was_observed_goes_before_what_a_closure_returns() -> None:
    optimizer = emo_torch.EmoSens([weight()])
    optimizer.observe(5.0)
    assert optimizer.step(lambda: 7.0) == 7.0
    assert felt(optimizer) == 5.0


def test_a_hook_before_the_step_may_bring_the_loss() -> None:
    optimizer = emo_torch.EmoSens([weight()])

    def bring(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "loss": 4.0}

    optimizer.register_step_pre_hook(bring)
    optimizer.step()
    assert felt(optimizer) == 4.0


def test_a_step_returns_the_loss_that_it_was_steered_by() -> None:
    optimizer = emo_torch.EmoSens([weight()])
    optimizer.observe(2.0)
    optimizer.observe(4.0)
    assert float(optimizer.step()) == 3.0  # type: ignore[arg-type]


def test_of_two_optimizers_each_has_its_own_losses() -> None:
    params = [weight(), weight()]
    first, second = (emo_torch.EmoSens([param]) for param in params)
    loss = first.watch(second.watch(params[0].square().sum() + params[1].sum()))
    loss.backward()
    first.step()
    second.step()
    assert felt(first) == felt(second) == loss.item()
    first.observe(1.0)
    with pytest.raises(emo_torch.LossMissingError):
        second.step()


# Discarded losses.


@pytest.mark.parametrize("forget", ["zero_grad", "discard_observed", "step"])
@pytest.mark.parametrize("make", MEMBERS)
def test_losses_are_forgotten(make: Any, forget: str) -> None:
    optimizer = make([weight()])
    optimizer.observe(1.0)
    getattr(optimizer, forget)()
    kept = everything(optimizer)
    with pytest.raises(emo_torch.LossMissingError, match=r"opt\.observe\(loss\)"):
        optimizer.step()
    assert everything(optimizer) == kept


@pytest.mark.parametrize("set_to_none", [False, True])
def test_zero_grad_does_what_it_does_for_every_optimizer(set_to_none: bool) -> None:
    param = weight()
    optimizer = emo_torch.EmoSens([param])
    param.grad = torch.ones(3)
    optimizer.zero_grad(set_to_none=set_to_none)
    assert param.grad is None if set_to_none else param.grad.eq(0).all()


def test_a_watched_loss_outlives_zero_grad_and_counts_when_backward_comes() -> None:
    param = weight()
    optimizer = emo_torch.EmoSens([param])
    loss = optimizer.watch(param.square().sum())
    optimizer.zero_grad()
    with pytest.raises(emo_torch.LossMissingError):
        optimizer.step()
    loss.backward()
    optimizer.step()
    assert felt(optimizer) == loss.item()


def test_a_watched_loss_without_a_backward_pass_does_not_count() -> None:
    param = weight()
    optimizer = emo_torch.EmoSens([param])
    optimizer.watch(100.0 * param.sum())
    loss = optimizer.watch(param.square().sum())
    torch.autograd.backward(loss)
    optimizer.step()
    assert felt(optimizer) == loss.item()


def test_gradients_asked_for_by_hand_count_as_a_backward_pass_and_twice_is_twice() -> None:
    param = weight()
    optimizer = emo_torch.EmoSens([param])
    loss = optimizer.watch(param.square().sum(), reduction="sum")
    for _ in range(2):
        (param.grad,) = torch.autograd.grad(loss, param, retain_graph=True)
    optimizer.step()
    assert felt(optimizer) == 2 * loss.item()


def test_an_evaluation_is_not_watched() -> None:
    param = weight()
    optimizer = emo_torch.EmoSens([param])
    with torch.no_grad():
        loss = optimizer.watch(param.sum())
    assert float(loss) == -0.5
    with pytest.raises(emo_torch.LossMissingError):
        optimizer.step()


def test_a_step_that_fails_keeps_the_losses_for_the_next_try() -> None:
    param = weight()
    optimizer = emo_torch.EmoSens([param])
    optimizer.observe(2.0)
    param.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    param.grad = torch.ones(3)
    optimizer.step()
    assert felt(optimizer) == 2.0


def test_no_loss_is_held_on_to() -> None:
    param = weight()
    optimizer = emo_torch.EmoSens([param])
    loss = optimizer.watch(param.square().sum())
    loss.backward()
    optimizer.observe(loss)
    kept = weakref.ref(loss)
    del loss
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
@pytest.mark.parametrize("make", MEMBERS[:4])
def test_a_copy_starts_without_the_losses_of_the_original(make: Any, copied: Any) -> None:
    optimizer = make([weight()])
    optimizer.observe(1.0)
    other = copied(optimizer)
    with pytest.raises(emo_torch.LossMissingError):
        other.step()
    other.observe(3.0)
    other.step()
    optimizer.step()
    assert (felt(other), felt(optimizer)) == (3.0, 1.0)


# Refused input.


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((torch.ones(2, requires_grad=True),), ValueError, "scalar"),
        (("0.5",), TypeError, "real number"),
        ((None,), emo_torch.LossMissingError, "none was given"),
        ((1.0, 0.0), ValueError, "above 0"),
        ((1.0, -1.0), ValueError, "above 0"),
        ((1.0, float("nan")), ValueError, "above 0"),
        ((1.0, float("inf")), ValueError, "above 0"),
        ((1.0, 10**400), ValueError, "above 0"),
        ((1.0, "1"), TypeError, "must be a number"),
        ((1.0, True), TypeError, "must be a number"),
        ((1.0, torch.tensor(1.0)), TypeError, "must be a number"),
        ((1.0, 1.0, "last"), ValueError, "'mean' or 'sum'"),
        ((1.0, 1.0, "sum"), ValueError, "the same reduction"),
    ],
)
@pytest.mark.parametrize("way", ["watch", "observe"])
def test_what_cannot_be_collected_is_refused_and_what_was_collected_stays(
    way: str, given: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    param = weight()
    optimizer = emo_torch.EmoSens([param])
    optimizer.observe(2.0)
    if way == "watch" and isinstance(given[0], float):
        given = (param.sum() * 0.0 + given[0], *given[1:])
    with pytest.raises(error, match=message):
        getattr(optimizer, way)(*given)
    optimizer.step()
    assert felt(optimizer) == 2.0


@pytest.mark.parametrize(("loss", "error"), [(1.0, TypeError), (torch.tensor(1.0), ValueError)])
def test_only_a_loss_with_a_graph_can_be_watched(loss: Any, error: type[Exception]) -> None:
    optimizer = emo_torch.EmoSens([weight()])
    with pytest.raises(error, match="observe"):
        optimizer.watch(loss)


def test_ref_takes_observed_losses_too() -> None:
    optimizer = emo_torch.RefAdamWMiniScheduleFree([weight()])
    optimizer.observe(2.0)
    optimizer.step()
    assert float(optimizer.divergence.previous) == 2.0
    optimizer.step()  # This member needs none.


# A collected loss, compiled.


def test_watching_and_observing_wait_for_no_device_and_compile_to_one_graph() -> None:
    param = weight()
    optimizer = emo_torch.EmoSens([param])
    param.grad = torch.ones(3)
    optimizer.observe(torch.tensor(1.0))
    optimizer.step()
    torch._dynamo.reset()

    @torch.compile(backend="eager", fullgraph=True)
    def step(loss: Tensor) -> None:
        optimizer.observe(loss)
        optimizer.observe(loss + 1.0)
        optimizer.step()

    for number in (2.0, 3.0):
        step(torch.tensor(number))
    plain = emo_torch.EmoSens([weight()])
    for number in (1.0, 2.5, 3.5):
        plain.param_groups[0]["params"][0].grad = torch.ones(3)
        plain.step(loss=number)
    assert optimizer.emotion == plain.emotion
    assert torch.equal(param, plain.param_groups[0]["params"][0])


def test_a_step_with_a_closure_compiles_to_one_graph() -> None:
    param = weight()
    optimizer = emo_torch.EmoSens([param])
    param.grad = torch.ones(3)
    optimizer.step(loss=1.0)
    torch._dynamo.reset()

    @torch.compile(backend="eager", fullgraph=True)
    def step(loss: Tensor) -> None:
        optimizer.step(lambda: loss)

    step(torch.tensor(2.0))
    assert int(optimizer.emotion.felt) == 2
    assert float(optimizer.emotion.short) == pytest.approx(1.3)
