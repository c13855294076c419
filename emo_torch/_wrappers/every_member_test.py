"""Every member with the helpers of PyTorch: gradient scalers, listeners, frozen and averaged weights."""

from typing import Any

import pytest
import torch
from torch.optim import swa_utils

import emo_torch
from emo_torch._grad_scaler_test import WAYS, loss_of, take_step
from emo_torch._members.by_name import MEMBERS
from emo_torch._testing import same_state, small_model

every_member = pytest.mark.parametrize("name", MEMBERS)


def make(name: str, params: Any) -> Any:
    """Returns a member whose steps are about 1e-3 long."""
    return emo_torch.create_optimizer(name, params, lr=20.0 if MEMBERS[name].generation == 3 else 2e-3)


def train(model: torch.nn.Module, optimizer: Any, steps: int = 4) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step(loss=loss)


def assert_same(ours: tuple[torch.nn.Module, Any], theirs: tuple[torch.nn.Module, Any]) -> None:
    (model, optimizer), (other, expected) = ours, theirs
    assert same_state(model.state_dict(), other.state_dict())
    assert same_state(optimizer.named_memory(), expected.named_memory())
    assert int(optimizer.step_count()) == 4


@every_member
def test_a_scaled_step_is_an_unscaled_one_and_an_overflow_is_skipped(name: str) -> None:
    plain = small_model()
    expected = make(name, plain.parameters())
    train(plain, expected)
    for way in WAYS:
        model = small_model()
        optimizer = make(name, model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(4):
            optimizer.zero_grad()
            take_step(optimizer, scaler, loss_of(model, step), way)
        assert_same((model, optimizer), (plain, expected))
        before = {key: value.clone() for key, value in optimizer.named_memory().items()}
        optimizer.zero_grad()
        take_step(optimizer, scaler, float("inf") * loss_of(model, 0), "loss")
        assert same_state(optimizer.named_memory(), before)
        assert same_state(model.state_dict(), plain.state_dict())


@every_member
def test_a_listener_hears_the_losses(name: str) -> None:
    plain, model = small_model(), small_model()
    expected, optimizer = make(name, plain.parameters()), make(name, model.parameters())
    train(plain, expected)
    with emo_torch.listen(optimizer):
        for step in range(4):
            optimizer.zero_grad()
            for part in (0.25, 0.75):
                (part * loss_of(model, step)).backward()
            optimizer.step()
    assert int(optimizer.step_count()) == 4
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@every_member
def test_adapters_train_beside_frozen_weights_as_alone(name: str) -> None:
    plain, model = small_model(), small_model()
    for each in (plain, model):
        for param in each[0].parameters():  # type: ignore[index]
            param.requires_grad_(False)
    alone = [param for param in plain.parameters() if param.requires_grad]
    expected, optimizer = make(name, alone), make(name, model.parameters())
    train(plain, expected)
    train(model, optimizer)
    assert_same((model, optimizer), (plain, expected))
    frozen = small_model()[0].state_dict()  # type: ignore[index]
    assert same_state(model[0].state_dict(), frozen)  # type: ignore[index]


@every_member
def test_averages_of_the_weights_and_their_schedule_follow_every_step(name: str) -> None:
    model = small_model()
    optimizer = make(name, model.parameters())
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.5))
    schedule = swa_utils.SWALR(optimizer, optimizer.param_groups[0]["lr"] / 2, anneal_epochs=3)
    kept: list[torch.Tensor] = []
    for step in range(4):
        train(model, optimizer, 1)
        average.update_parameters(model)
        schedule.step()
        now = [param.detach().clone() for param in model.parameters()]
        kept = [torch.lerp(new, old, 0.5) for new, old in zip(now, kept, strict=True)] if step else now
    for one, other in zip(average.module.parameters(), kept, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    start = list(small_model().parameters())
    assert not any(map(torch.equal, average.module.parameters(), start))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(make(name, start).param_groups[0]["lr"] / 2)
