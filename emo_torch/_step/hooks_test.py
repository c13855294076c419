"""A step has PyTorch's hooks and record, once, whether or not PyTorch's own wrapper runs."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import emo_torch


def _made(kind: type[emo_torch.EmoOptimizer] = emo_torch.EmoSens) -> emo_torch.EmoOptimizer:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    return kind([weight])  # type: ignore[call-arg]


class OwnStep(emo_torch.EmoSens):
    """A user's optimizer with a step of its own, which PyTorch wraps."""

    def step(self, *given: Any, **options: Any) -> Any:
        return super().step(*given, **options)


@pytest.fixture(params=["own", "global"])
def calls(request: pytest.FixtureRequest) -> Iterator[tuple[list[str], Any]]:
    """The calls of hooks so far, and a function that registers hooks for an optimizer."""
    names: list[str] = []
    handles: list[Any] = []

    def register(optimizer: emo_torch.EmoOptimizer) -> None:
        is_own = request.param == "own"
        before = optimizer.register_step_pre_hook if is_own else register_optimizer_step_pre_hook
        after = optimizer.register_step_post_hook if is_own else register_optimizer_step_post_hook
        handles.append(before(lambda *_: names.append("before")))
        handles.append(after(lambda *_: names.append("after")))

    yield names, register
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("kind", [emo_torch.EmoSens, OwnStep])
def test_hooks_run_once(calls: tuple[list[str], Any], kind: type[emo_torch.EmoOptimizer]) -> None:
    names, register = calls
    optimizer = _made(kind)
    optimizer.step(loss=1.0)
    register(optimizer)
    optimizer.step(loss=1.0)
    assert names == ["before", "after"]


def test_a_profiler_sees_the_step() -> None:
    optimizer = _made()
    optimizer.step(loss=1.0)
    # Without `acc_events`, PyTorch 2.11 warns.
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], acc_events=True) as profile:
        optimizer.step(loss=1.0)
    assert [event.count for event in profile.key_averages() if "#EmoSens.step" in event.key] == [1]


def test_a_step_runs_without_gradients_and_restores_them() -> None:
    optimizer = _made()
    weight = optimizer.param_groups[0]["params"][0]
    optimizer.step(loss=(weight.sum() * 2).requires_grad_())
    assert torch.is_grad_enabled()
    assert all(tensor.grad_fn is None for tensor in optimizer.state[weight].values())
    with pytest.raises(emo_torch.LossMissingError):
        optimizer.step()
    assert torch.is_grad_enabled()
    with torch.no_grad():
        optimizer.step(loss=1.0)
        assert not torch.is_grad_enabled()
