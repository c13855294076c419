"""Gradient release: an optimizer for each parameter steps within the backward pass."""

import warnings
from collections.abc import Iterable
from typing import Any

import pytest
import torch

import emo_torch
from emo_torch._distributed.processes_test import Place, in_processes
from emo_torch._distributed.training_test import (
    APART,
    Net,
    assert_equal_params,
    backward,
    batch,
    options_of,
    own_share,
    sharded,
    whole,
)


def release(
    params: Iterable[torch.nn.Parameter], name: str, **options: Any
) -> list[emo_torch.LossOptimizer]:
    """Lets each parameter step, and lets go of its gradient, as soon as that is there."""
    made = {param: emo_torch.create_optimizer(name, [param], **options) for param in params}

    def step(param: Any) -> None:
        made[param].step()
        made[param].zero_grad()

    for param in made:
        param.register_post_accumulate_grad_hook(step)
    return list(made.values())


def step_both(
    net: torch.nn.Module,
    optimizers: list[Any],
    twin: torch.nn.Module,
    whole_optimizer: Any,
    step: int,
    place: Place | None,
) -> None:
    """Steps one net within its backward pass, with a watched loss, and its twin after a backward pass."""
    inputs, targets = own_share(step, place)
    loss = (net(inputs) - targets).square().mean()
    for optimizer in optimizers:
        optimizer.watch(loss)
    loss.backward()
    whole_optimizer.zero_grad()
    backward(twin, step, place)
    whole_optimizer.step(loss=loss.detach())


@pytest.mark.parametrize("name", APART)
def test_steps_within_the_backward_pass_take_a_watched_loss(name: str) -> None:
    net, twin = Net(), Net()
    optimizers = release(net.parameters(), name, **options_of(name))
    whole_optimizer = emo_torch.create_optimizer(name, twin.parameters(), **options_of(name))
    for step in range(6):
        step_both(net, optimizers, twin, whole_optimizer, step, None)
        assert all(param.grad is None for param in net.parameters())
    assert_equal_params(net, twin)
    for optimizer in optimizers:
        for key, tensor in optimizer.named_memory().items():
            assert torch.equal(tensor, whole_optimizer.named_memory()[key]), key


def test_steps_within_the_backward_pass_cannot_wait_for_an_observed_loss() -> None:
    net = Net()
    optimizers = release(net.parameters(), "emo_sens")
    inputs, targets = batch(0)
    loss = (net(inputs) - targets).square().mean()
    with pytest.raises(emo_torch.LossMissingError, match=r"`opt.watch\(loss\)` before the backward pass"):
        loss.backward()
    for optimizer in optimizers:
        optimizer.observe(loss)
    assert_equal_params(net, Net())


def test_the_hooks_of_pytorch_step_within_the_backward_pass() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.distributed.optim compiles in a way of the past.
        from torch.distributed.optim.apply_optimizer_in_backward import (
            _apply_optimizer_in_backward,
            _get_in_backward_optimizers,
        )

    net, twin = Net(), Net()
    _apply_optimizer_in_backward(emo_torch.EmoSens, net.parameters(), {"lr": 1e-2})
    optimizers: list[Any] = _get_in_backward_optimizers(net)
    whole_optimizer = emo_torch.EmoSens(twin.parameters(), lr=1e-2)
    for step in range(6):
        step_both(net, optimizers, twin, whole_optimizer, step, None)
    assert_equal_params(net, twin)


@in_processes(2)
def test_shards_step_within_the_backward_pass(place: Place) -> None:
    net, twin = sharded(place), sharded(place)
    optimizers = release(net.parameters(), "emo_airy", **options_of("emo_airy"))
    whole_optimizer = emo_torch.EmoAiry(twin.parameters(), **options_of("emo_airy"))
    for step in range(4):
        step_both(net, optimizers, twin, whole_optimizer, step, place)
    for param, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(whole(param.detach()), whole(other.detach()))
