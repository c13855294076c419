"""What was heard of backward passes, and when it is forgotten."""

import copy

import pytest

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
        weight.grad.mul_(0.5)  # type: ignore[union-attr]  # Scaled gradients are still those of the loss.
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
