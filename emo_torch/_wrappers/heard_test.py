"""The losses heard from backward passes, and when they are discarded."""

import copy
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import emo_torch
from emo_torch import LossMissingError, listen
from emo_torch._wrappers.listen_test import felt, pair


def test_what_was_heard_is_forgotten_where_the_gradients_are_made_0_in_place() -> None:
    weight, optimizer = pair()
    with listen(optimizer):
        for factor in (100.0, 1.0):
            if weight.grad is not None:
                weight.grad.zero_()
            (factor * weight.sum()).backward()
        weight.grad.mul_(0.5)  # type: ignore[union-attr]  # Scaled gradients still belong to the loss.
        weight.sum().backward()
        optimizer.step()
    assert felt(optimizer) == 4.0


def test_copies_that_are_made_while_all_are_heard_are_heard() -> None:
    weight, optimizer = pair()
    with listen():
        copied_weight, copied = copy.deepcopy((weight, optimizer))
        copied_weight.sum().backward()
        copied.step()
        with pytest.raises(LossMissingError, match=r"1 reached other parameters only\. emo_torch"):
            optimizer.step()
    assert felt(copied) == 2.0
    assert "__setstate__" in vars(emo_torch.LossOptimizer)
    assert not hasattr(emo_torch.LossOptimizer.__setstate__, "__wrapped__")


class Own(torch.autograd.Function):
    """A function that could make a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        del ctx
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        del ctx
        return gradient


@pytest.mark.parametrize("has_own_function", [False, True])
def test_gradients_of_few_parameters_are_no_sign_of_a_pass_or_a_doubt(has_own_function: bool) -> None:
    """Of the other optimizer, one parameter of many has a gradient, which belongs to an earlier pass."""
    weight, optimizer = pair()
    many = [torch.nn.Parameter(torch.ones(1)) for _ in range(40)]
    other = emo_torch.EmoSens(many, lr=1e-3)
    with listen(optimizer, other):
        (5.0 * many[1].sum()).backward()
        for _ in range(2):
            used = Own.apply(weight) if has_own_function else weight  # type: ignore[no-untyped-call]
            used.sum().backward()
        optimizer.step()
        if has_own_function:
            with pytest.raises(
                LossMissingError, match="only a part of the loss: a custom autograd function"
            ):
                other.step()
        else:
            other.step()
            assert felt(other) == 5.0
    assert felt(optimizer) == 4.0


def test_a_pass_that_no_walk_shows_is_heard_by_the_gradients() -> None:
    many: list[torch.Tensor] = [torch.nn.Parameter(torch.ones(1)) for _ in range(40)]
    optimizer = emo_torch.EmoSens(many, lr=1e-3)
    x = torch.ones(1, requires_grad=True)
    with listen(optimizer):
        for _ in range(2):
            loss: Any = checkpoint(lambda x: torch.cat(many).sum() * x.sum(), x, use_reentrant=True)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert int(optimizer.emotion.felt) == 2
