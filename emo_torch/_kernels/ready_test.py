"""A step with a ready job is the step that the options of its group ask for."""

from typing import Any

import pytest
import torch

import emo_torch
from emo_torch._kernels import library
from emo_torch._kernels.ready import ReadyStep
from emo_torch._members.by_name import MEMBERS

pytestmark = pytest.mark.skipif(library() is None, reason="NO C COMPILER WAS FOUND")

CHANGES: list[dict[str, Any]] = [
    {"lr": 0.3},
    {"weight_decay": 0.5},
    {"betas": (0.5, 0.6)},
    {"eps": 0.1},
    {"theta": 0.9},
    {"weight_decay_mode": "l2"},
    {"use_shadow": True},
    {"maximize": True},
    {"foreach": True},
    {"fused": False},
    {"weight_decay_divisor": 0.1},
]


def _stepped(name: str, changes: dict[str, Any], **options: Any) -> list[torch.Tensor]:
    """Returns parameters and moments after steps, in the middle of which options change."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 4), (3,))]
    rate = 20.0 if MEMBERS[name].generation == 3 else 0.1
    optimizer = emo_torch.create_optimizer(name, params, lr=rate, **options)
    for step in range(14):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        if step == 8:
            optimizer.param_groups[0].update(changes)
        optimizer.step(loss=1.0 + 0.3 * (step % 3))
    return [*params, *(value for param in params for value in optimizer.state[param].values())]


@pytest.mark.parametrize(
    "name", ["emo_sens", "emo_airy", "emo_sens3", "emo_tion", "emo_void", "emo_lynx36"]
)
@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: next(iter(changes)))
def test_a_changed_option_counts_at_once(
    name: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = _stepped(name, changes)
    monkeypatch.setattr(ReadyStep, "fits", lambda *_: False)
    for ours, theirs in zip(ready, _stepped(name, changes), strict=True):
        assert ours.equal(theirs)


def test_the_job_is_ready_after_a_few_steps_and_never_with_an_option_that_can_change_in_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    run = ReadyStep.run

    def count(*given: Any) -> bool:
        calls.append(1)
        return run(*given)

    monkeypatch.setattr(ReadyStep, "run", count)
    _stepped("emo_sens", {})
    assert len(calls) >= 8
    before = len(calls)
    _stepped("emo_sens", {"betas": [0.9, 0.99]})
    assert len(calls) - before < 8


@pytest.mark.parametrize("use_shadow", [False, True])
@pytest.mark.parametrize("name", ["emo_cats3", "emo_tion", "emo_void", "emo_navi36"])
def test_the_scalars_of_the_later_generations_are_new_at_each_step(
    name: str, use_shadow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bool] = []
    run = ReadyStep.run

    def count(*given: Any) -> bool:
        taken.append(run(*given))
        return taken[-1]

    monkeypatch.setattr(ReadyStep, "run", count)
    ready = _stepped(name, {}, use_shadow=use_shadow)
    assert sum(taken) >= 8
    assert all(taken)
    monkeypatch.setattr(ReadyStep, "fits", lambda *_: False)
    for ours, theirs in zip(ready, _stepped(name, {}, use_shadow=use_shadow), strict=True):
        assert ours.equal(theirs)


def test_an_emotion_with_other_memory_is_read_and_written() -> None:
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = emo_torch.EmoSens([param])
    for _ in range(4):
        optimizer.step(loss=1.0)
    optimizer.param_groups[0]["emotion_short"].data = torch.tensor(3.0)
    optimizer.step(loss=1.0)
    assert optimizer.emotion.short.item() == pytest.approx(3.0 + 0.3 * (1.0 - 3.0))
