"""The values of the metrics, and their cost: nothing without a call."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch._step.sync_test import NoSync

NAMES = [
    *("short", "long", "scalar", "step_scale", "shadow_ratio", "learning_rate", "masked_share"),
    *("should_stop", "is_quiet", "felt", "held"),
]


def step(optimizer: Any, *losses: float) -> None:
    """Takes steps on gradients of which a half is 0."""
    for loss in losses:
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = (torch.arange(param.numel()) % 2).reshape(param.shape).to(param.dtype)
        optimizer.step(loss=loss)


def params() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(2, 4)), torch.nn.Parameter(torch.ones(6, dtype=torch.bfloat16))]


def test_the_metrics_are_the_emotion_and_what_it_does() -> None:
    optimizer = emo_torch.EmoSens(params(), lr=0.1, use_shadow=True)
    step(optimizer, 2.0, 1.0, float("nan"), 1.5)
    emotion = optimizer.emotion
    metrics = emo_torch.get_metrics(optimizer)
    assert list(metrics) == [f"emotion/{name}" for name in NAMES]
    assert {type(value) for value in metrics.values()} == {float}
    for name in ("short", "long", "scalar", "step_scale", "shadow_ratio", "felt", "held"):
        assert metrics[f"emotion/{name}"] == float(getattr(emotion, name))
    assert metrics["emotion/shadow_ratio"] > 0.1
    assert metrics["emotion/learning_rate"] == pytest.approx(0.1 * (1 - abs(float(emotion.scalar))))
    assert metrics["emotion/masked_share"] == 0.5
    assert (metrics["emotion/felt"], metrics["emotion/held"]) == (3.0, 1.0)
    assert (metrics["emotion/should_stop"], metrics["emotion/is_quiet"]) == (0.0, 0.0)
    step(optimizer, *[1.5] * 500)
    metrics = emo_torch.get_metrics(optimizer)
    assert (metrics["emotion/should_stop"], metrics["emotion/is_quiet"]) == (1.0, 1.0)


def test_every_group_has_its_learning_rate() -> None:
    first, second = params()
    groups: list[dict[str, Any]] = [{"params": [first], "lr": torch.tensor([0.5])}, {"params": [second]}]
    optimizer = emo_torch.EmoCats(groups, lr=0.25)
    step(optimizer, 1.0)
    metrics = emo_torch.get_metrics(optimizer)
    assert metrics["emotion/learning_rate/0"] == 0.5
    assert metrics["emotion/learning_rate/1"] == 0.25
    assert "emotion/learning_rate" not in metrics


def test_the_learning_rate_is_as_it_is_where_the_rule_does_not_scale() -> None:
    optimizer = emo_torch.EmoNavi(params(), lr=0.5)
    step(optimizer, 2.0, 1.0)
    metrics = emo_torch.get_metrics(optimizer)
    assert metrics["emotion/step_scale"] < 0.9
    assert metrics["emotion/learning_rate"] == 0.5
    assert metrics["emotion/masked_share"] == 0.0


@pytest.mark.parametrize("mode", ["decoupled", "l2"])
@pytest.mark.parametrize("foreach", [False, True])
def test_the_share_is_that_of_the_elements_that_do_not_move(mode: str, foreach: bool) -> None:
    for make in (emo_torch.EmoSens, emo_torch.EmoAiry, emo_torch.EmoCats):
        weight = torch.nn.Parameter(torch.full((6, 5), 2.0))
        options: dict[str, Any] = {"weight_decay_mode": mode, "theta": 0.2, "foreach": foreach}
        options["weight_decay"] = 0.01 if mode == "l2" else 0.0
        optimizer = make([weight], lr=1e-3, **options)
        weight.grad = torch.linspace(-0.2, 0.2, 30).reshape(6, 5)
        before = weight.detach().clone()
        optimizer.step(loss=1.0)
        share = float((weight == before).float().mean())
        assert 0.0 < share < 1.0
        assert emo_torch.get_metrics(optimizer)["emotion/masked_share"] == pytest.approx(share)


def test_the_share_is_of_the_gradients_that_are_there() -> None:
    first, second = params()
    optimizer = emo_torch.EmoSens([first, second])
    assert "emotion/masked_share" not in emo_torch.get_metrics(optimizer)
    first.grad = torch.zeros_like(first)
    assert emo_torch.get_metrics(optimizer)["emotion/masked_share"] == 1.0
    second.grad = torch.ones_like(second)
    assert emo_torch.get_metrics(optimizer)["emotion/masked_share"] == pytest.approx(8 / 14)


def test_an_optimizer_made_emotional_has_metrics_and_so_has_a_wrapped_one() -> None:
    optimizer = emo_torch.Emotional(torch.optim.AdamW(params(), lr=0.5))
    step(optimizer, 2.0, 1.0)
    wrapped = SimpleNamespace(optimizer=SimpleNamespace(optimizer=optimizer))
    metrics = emo_torch.get_metrics(wrapped)
    assert metrics == emo_torch.get_metrics(optimizer)
    assert metrics["emotion/masked_share"] == 0.5
    assert metrics["emotion/learning_rate"] == pytest.approx(0.5 * metrics["emotion/step_scale"])


@pytest.mark.parametrize("make", [torch.optim.AdamW, emo_torch.RefAdamWMiniScheduleFree])
def test_an_optimizer_without_an_emotion_is_refused(make: Any) -> None:
    with pytest.raises(TypeError, match=f"{make.__name__} has no emotion to show"):
        emo_torch.get_metrics(make(params()))


def test_tensors_are_handed_out_without_waiting_for_the_device() -> None:
    optimizer = emo_torch.EmoSens(params(), lr=torch.tensor(0.1), use_shadow=True, weight_decay_mode="l2")
    with NoSync():
        for loss in (2.0, 1.0):
            step(optimizer, torch.tensor(loss))  # type: ignore[arg-type]
            metrics = emo_torch.get_metrics(optimizer, as_floats=False)
    assert all(isinstance(value, Tensor) and value.ndim == 0 for value in metrics.values())
    numbers = emo_torch.get_metrics(optimizer)
    assert {name: float(value) for name, value in metrics.items()} == numbers
    before = dict(metrics)
    step(optimizer, 9.0)
    assert before["emotion/long"] != optimizer.emotion.long  # The metrics are copies.


def test_numbers_are_fetched_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = emo_torch.EmoSens(params(), lr=torch.tensor(0.1))
    step(optimizer, 2.0, 1.0)
    fetched = []

    def tolist(tensor: Tensor, own: Any = Tensor.tolist) -> Any:
        fetched.append(tensor.shape)
        return own(tensor)

    monkeypatch.setattr(Tensor, "tolist", tolist)
    with NoSync():
        emo_torch.get_metrics(optimizer)
    assert fetched == [torch.Size([len(NAMES)])]


def test_a_step_computes_no_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(emo_torch.EmoSens, "keep_of", lambda *given: asked.append(given))
    optimizer = emo_torch.EmoSens(params())
    with NoSync():
        step(optimizer, torch.tensor(2.0))  # type: ignore[arg-type]
    assert not asked
