"""`torch.amp.GradScaler`: scaled gradients, unscaled losses, skipped steps."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch._testing import batch, same_state, small_model

WAYS = ["loss", "watch", "observe", "closure"]
"""How the loss reaches a step that a scaler takes."""
SCALE = 1024.0


def sens(params: Any) -> Any:
    return emo_torch.EmoSens(params, lr=1e-2)


def wrapped_adamw(params: Any) -> Any:
    return emo_torch.Emotional(torch.optim.AdamW(params, lr=1e-2))


@pytest.fixture(params=[sens, emo_torch.EmoCats, wrapped_adamw], ids=["EmoSens", "EmoCats", "Emotional"])
def make(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    made: Callable[[Any], Any] = request.param
    return made


def loss_of(model: torch.nn.Module, step: int, dtype: torch.dtype | None = None) -> Tensor:
    x, y = batch(step)
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        loss: Tensor = (model(x).float() - y).square().mean()
    return loss


def take_step(optimizer: Any, scaler: torch.amp.GradScaler, loss: Tensor, way: str) -> None:
    """One step as a script takes it; the loss comes in the given way."""
    if way == "watch":
        optimizer.watch(loss)
    scaler.scale(loss).backward()
    if way == "observe":
        optimizer.observe(loss)
    if way == "loss":
        scaler.step(optimizer, loss=loss)
    elif way == "closure":
        scaler.step(optimizer, lambda: loss.detach())
    else:
        scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("way", WAYS)
def test_a_scaled_step_is_an_unscaled_one(make: Callable[[Any], Any], way: str) -> None:
    model, plain = small_model(), small_model()
    optimizer, reference = make(model.parameters()), make(plain.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    for step in range(4):
        optimizer.zero_grad()
        take_step(optimizer, scaler, loss_of(model, step), way)
        reference.zero_grad()
        loss = loss_of(plain, step)
        loss.backward()
        reference.step(loss=loss)
    # The scale is a power of two: nothing is rounded.
    assert same_state(list(model.parameters()), list(plain.parameters()))
    assert same_state(optimizer.emotion._asdict(), reference.emotion._asdict())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_under_autocast_the_loss_is_felt_as_it_is(dtype: torch.dtype, way: str) -> None:
    model = small_model()
    optimizer = sens(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    average = None
    for step in range(4):
        optimizer.zero_grad()
        loss = loss_of(model, step, dtype)
        value = loss.detach()
        average = value if average is None else average + 0.01 * (value - average)
        before = [param.detach().clone() for param in model.parameters()]
        take_step(optimizer, scaler, loss, way)
        assert not any(map(torch.equal, before, model.parameters()))
    torch.testing.assert_close(optimizer.emotion.long, average)
    assert scaler.get_scale() == SCALE


@pytest.mark.parametrize("way", ["watch", "observe"])
def test_accumulated_losses_are_averaged_undivided_and_unscaled(way: str) -> None:
    model = small_model()
    optimizer = sens(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    losses = [loss_of(model, step) for step in range(4)]
    for loss in losses:
        if way == "watch":
            optimizer.watch(loss)
        scaler.scale(loss / 4).backward()
        if way == "observe":
            optimizer.observe(loss)
    scaler.step(optimizer)
    torch.testing.assert_close(optimizer.emotion.long, torch.stack(losses).detach().mean())


@pytest.mark.parametrize("way", WAYS)
def test_a_skipped_step_changes_nothing_and_leaves_no_loss_behind(
    make: Callable[[Any], Any], way: str
) -> None:
    model = small_model()
    optimizer = make(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    take_step(optimizer, scaler, loss_of(model, 0), way)
    state = copy.deepcopy(optimizer.state_dict())
    params = [param.detach().clone() for param in model.parameters()]

    optimizer.zero_grad()
    take_step(optimizer, scaler, loss_of(model, 1) * 1e38, way)  # Overflows once it is scaled.
    assert scaler.get_scale() == SCALE / 2
    assert same_state(optimizer.state_dict(), state)
    assert same_state([param.detach() for param in model.parameters()], params)

    optimizer.zero_grad()
    loss = loss_of(model, 2)
    take_step(optimizer, scaler, loss, way)
    emotion = optimizer.emotion
    before = state["param_groups"][0]["emotion_long"]
    torch.testing.assert_close(emotion.long, before + 0.01 * (loss.detach() - before))
    assert (int(emotion.felt), int(emotion.held)) == (2, 0)


def test_where_the_model_resets_the_gradients_a_skipped_loss_has_to_be_forgotten() -> None:
    model = small_model()
    optimizer = sens(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    take_step(optimizer, scaler, loss_of(model, 1) * 1e38, "observe")
    model.zero_grad()
    optimizer.discard_observed()
    loss = loss_of(model, 2)
    take_step(optimizer, scaler, loss, "observe")
    torch.testing.assert_close(optimizer.emotion.long, loss.detach())


def test_gradients_may_be_unscaled_and_clipped_first() -> None:
    model = small_model()
    optimizer = sens(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    loss = loss_of(model, 0)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer, loss=loss)
    assert same_state(optimizer.emotion.long, loss.detach())


def test_a_closure_by_its_name_is_refused_by_the_scaler() -> None:
    optimizer = sens(small_model().parameters())
    with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
        torch.amp.GradScaler("cpu").step(optimizer, closure=lambda: 1.0)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_closure_that_computes_gradients_is_refused(
    make: Callable[[Any], Any], set_to_none: bool
) -> None:
    model = small_model()
    optimizer = make(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    take_step(optimizer, scaler, loss_of(model, 0), "loss")
    state = copy.deepcopy(optimizer.state_dict())
    params = [param.detach().clone() for param in model.parameters()]

    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none)
        loss = loss_of(model, 1)
        scaler.scale(loss).backward()
        return loss

    closure()
    with pytest.raises(RuntimeError, match=r"scaler\.step\(opt, loss=loss\)"):
        scaler.step(optimizer, closure)
    assert same_state(optimizer.state_dict(), state)
    assert same_state([param.detach() for param in model.parameters()], params)


def test_a_scaler_that_is_off_takes_any_closure() -> None:
    model = small_model()
    optimizer = sens(model.parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, 1)
        loss.backward()
        return loss

    loss = scaler.step(optimizer, closure)
    assert loss is not None
    assert same_state(optimizer.emotion.long, torch.as_tensor(loss).detach())
