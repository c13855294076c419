"""Several losses with several backward passes in one step, and when losses are discarded."""

from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch._pieces.accumulation_test import MEMBERS, felt, weight

# Gradients of several losses that are taken apart.


class TakesApart:
    """Takes the gradient of each loss by itself, as PCGrad does, and steps by their mean."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def backward(self, losses: list[Tensor]) -> None:
        (param,) = self.optimizer.param_groups[0]["params"]
        grads = []
        for loss in losses:
            self.optimizer.zero_grad()
            loss.backward(retain_graph=True)
            grads.append(param.grad.clone())
        param.grad = torch.stack(grads).mean(0)


@pytest.mark.parametrize(
    ("reduction", "weights", "expected"),
    [("mean", (1.0, 1.0, 1.0), 3.0), ("mean", (8, 4, 4), 2.5), ("sum", (1.0, 1.0, 1.0), 9.0)],
)
@pytest.mark.parametrize("make", MEMBERS)
def test_zero_grad_between_the_passes_of_losses_watched_together_forgets_none(
    make: Any, reduction: str, weights: Any, expected: float
) -> None:
    param = weight()
    optimizer = make([param])
    parts = TakesApart(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        losses = [
            optimizer.watch(param.sum() * 0.0 + number, share, reduction)
            for number, share in zip((1.0, 2.0, 6.0), weights, strict=True)
        ]
        parts.backward(losses)
        optimizer.step()
    assert int(optimizer.emotion.felt) == 3
    assert float(optimizer.emotion.long) == float(optimizer.emotion.short) == expected


def test_a_second_try_does_not_count_a_loss_twice() -> None:
    param = weight()
    optimizer = emo_torch.EmoSens([param])
    losses = [optimizer.watch(param.sum() * 0.0 + number, reduction="sum") for number in (1.0, 2.0, 4.0)]
    for _ in range(3):
        TakesApart(optimizer).backward(losses)
    optimizer.step()
    assert felt(optimizer) == 7.0


def test_one_loss_with_two_passes_counts_once_where_zero_grad_is_between() -> None:
    param = weight()
    optimizer = emo_torch.EmoSens([param])
    loss = optimizer.watch(param.square().sum(), reduction="sum")
    loss.backward(retain_graph=True)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    assert felt(optimizer) == loss.item()


@pytest.mark.parametrize("zero_first", [False, True])
def test_the_loss_of_a_batch_that_was_thrown_away_does_not_come_back(zero_first: bool) -> None:
    param = weight()
    optimizer = emo_torch.EmoSens([param])
    kept = []  # Some programs keep their losses, and so the graphs.
    for number in (3.0, 100.0, 3.0):
        if zero_first:
            optimizer.zero_grad()
        kept.append(optimizer.watch(param.sum() * 0.0 + number))
        if not zero_first:
            optimizer.zero_grad()  # Also right behind the forward pass.
        kept[-1].backward()
        if number == 100.0:
            continue  # Thrown away, for example because a gradient is not finite.
        optimizer.step()
    assert int(optimizer.emotion.felt) == 2
    assert float(optimizer.emotion.long) == float(optimizer.emotion.short) == 3.0


@pytest.mark.parametrize("end", ["step", "discard_observed"])
def test_a_step_and_discard_observed_end_what_belongs_together(end: str) -> None:
    param = weight()
    optimizer = emo_torch.EmoSens([param])
    first, second = (optimizer.watch(param.sum() * 0.0 + number) for number in (50.0, 2.0))
    first.backward()
    getattr(optimizer, end)()
    optimizer.zero_grad()
    second.backward()
    assert float(optimizer.step()) == 2.0  # type: ignore[arg-type]


def test_an_observed_loss_is_forgotten_among_watched_ones() -> None:
    param = weight()
    optimizer = emo_torch.EmoSens([param])
    first, second = (optimizer.watch(param.sum() * 0.0 + number) for number in (1.0, 3.0))
    first.backward()
    optimizer.observe(1000.0)
    optimizer.zero_grad()
    second.backward()
    optimizer.step()
    assert felt(optimizer) == 2.0


def test_where_a_loss_comes_after_the_pass_of_another_their_sum_can_be_observed() -> None:
    param = weight()
    optimizer = emo_torch.EmoSens([param])
    losses = []
    for number in (1.0, 3.0):
        optimizer.zero_grad()
        losses.append(optimizer.watch(param.sum() * 0.0 + number))
        losses[-1].backward()
    optimizer.discard_observed()
    optimizer.observe(sum(loss.detach() for loss in losses))
    optimizer.step()
    assert felt(optimizer) == 4.0


def test_losses_of_one_step_are_reduced_in_one_way_also_by_their_passes() -> None:
    param = weight()
    optimizer = emo_torch.EmoSens([param])
    first, second = (optimizer.watch(param.sum(), reduction=kind) for kind in ("mean", "sum"))
    first.backward()
    with pytest.raises(ValueError, match="must have the same reduction"):
        second.backward()


def test_nothing_is_kept_of_an_ordinary_loop() -> None:
    param = weight()
    optimizer = emo_torch.EmoSens([param])
    for _ in range(50):
        loss = optimizer.watch(param.square().sum())
        loss.backward()
        del loss
        assert not optimizer._collected._passes
    for _ in range(50):
        TakesApart(optimizer).backward([optimizer.watch(param.square().sum()) for _ in range(3)])
        assert len(optimizer._collected._passes) + len(optimizer._collected._taken_back) <= 6


@pytest.mark.parametrize("make", MEMBERS)
def test_a_watched_loss_that_is_changed_in_place_counts_as_it_was(make: Any) -> None:
    param = weight()
    optimizer = make([param])
    for part in (1.0, 3.0):
        loss = optimizer.watch(part * param.square().sum())
        wanted = loss.item() * 2.0 / part
        loss /= 2.0
        loss.backward()
    optimizer.step()
    assert felt(optimizer) == pytest.approx(wanted)
