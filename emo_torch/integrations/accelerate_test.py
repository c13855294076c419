"""Accelerate, with the real library: the losses that the optimizer feels, and the cleanup."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import emo_torch
from emo_torch._testing import Listening, batch, mean_squared_error, same_state, small_model

pytest.importorskip("accelerate", reason="Accelerate is not installed: pip install accelerate")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from emo_torch.integrations.accelerate import losses_from_backward

STEPS = 4


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Accelerate keeps its settings for the whole process: each test starts without."""

    def forget() -> None:
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()

    forget()
    yield
    forget()


def prepared(accumulation: int = 1, **options: Any) -> tuple[Accelerator, Any, Any, Listening]:
    """An accelerator, a model and an optimizer that it prepared, and the optimizer inside."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation, **options)
    model = small_model()
    optimizer = Listening(model.parameters(), lr=1e-2)
    return accelerator, *accelerator.prepare(model, optimizer), optimizer


def train(accelerator: Accelerator, model: Any, optimizer: Any, batches: range) -> list[float]:
    """The loop of a script that knows nothing of losses in steps; returns the losses."""
    losses = []
    for step in batches:
        with accelerator.accumulate(model):
            loss = mean_squared_error(model, step)
            losses.append(float(loss.detach()))
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    return losses


def full_batch_losses(accumulation: int) -> tuple[list[float], torch.nn.Module]:
    """The losses of plain PyTorch in steps over as many batches at once, and the resulting model."""
    model = small_model()
    optimizer = Listening(model.parameters(), lr=1e-2)
    for step in range(STEPS):
        optimizer.zero_grad()
        parts = [batch(step * accumulation + part) for part in range(accumulation)]
        x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step(loss=loss)
    return optimizer.heard, model


def test_a_step_without_a_loss_says_so() -> None:
    accelerator, model, optimizer, _ = prepared()
    before = [param.clone() for param in model.parameters()]
    with pytest.raises(emo_torch.LossMissingError, match="watch"):
        train(accelerator, model, optimizer, range(1))
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_losses_of_backward_are_those_of_the_full_batch(accumulation: int) -> None:
    accelerator, model, optimizer, inside = prepared(accumulation)
    with losses_from_backward(accelerator):
        losses = train(accelerator, model, optimizer, range(STEPS * accumulation))
    steps = torch.tensor(losses).reshape(STEPS, accumulation)
    torch.testing.assert_close(torch.tensor(inside.heard), steps.mean(dim=1), rtol=1e-6, atol=0.0)
    heard, plain = full_batch_losses(accumulation)
    torch.testing.assert_close(torch.tensor(inside.heard), torch.tensor(heard), rtol=1e-4, atol=0.0)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_one_line_of_a_script_does_the_same(accumulation: int) -> None:
    accelerator, model, optimizer, inside = prepared(accumulation)
    losses = []
    for step in range(STEPS * accumulation):
        with accelerator.accumulate(model):
            loss = emo_torch.unwrap(optimizer).watch(mean_squared_error(model, step))
            losses.append(loss.detach())
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    assert emo_torch.unwrap(optimizer) is inside
    steps = torch.stack(losses).reshape(STEPS, accumulation)
    torch.testing.assert_close(torch.tensor(inside.heard), steps.mean(dim=1), rtol=1e-6, atol=0.0)


def test_a_closure_of_the_loss_alone_goes_through_the_wrapper() -> None:
    accelerator, model, optimizer, inside = prepared()
    loss = mean_squared_error(model, 0)
    accelerator.backward(loss)
    optimizer.step(lambda: loss.detach())
    assert inside.heard == [float(loss.detach())]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_gradient_scaling_does_not_reach_the_losses(accumulation: int) -> None:
    accelerator, model, optimizer, inside = prepared(accumulation)
    # On a CPU Accelerate makes no scaler by itself.
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    accelerator._optimizers.clear()
    optimizer = accelerator.prepare_optimizer(inside)
    with losses_from_backward(accelerator):
        losses = train(accelerator, model, optimizer, range(STEPS * accumulation))
    steps = torch.tensor(losses).reshape(STEPS, accumulation)
    torch.testing.assert_close(torch.tensor(inside.heard), steps.mean(dim=1), rtol=1e-6, atol=0.0)


def test_with_a_scaler_a_closure_of_the_loss_alone_is_taken_and_another_is_refused() -> None:
    accelerator, model, _, inside = prepared()
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = accelerator.prepare_optimizer(inside)
    loss = mean_squared_error(model, 0)
    accelerator.backward(loss)
    optimizer.step(lambda: loss.detach())
    assert inside.heard == [float(loss.detach())]
    optimizer.zero_grad()
    params = [param.detach().clone() for param in model.parameters()]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = mean_squared_error(model, 1)
        accelerator.backward(loss)
        return loss

    closure()
    with pytest.raises(RuntimeError, match="scaled"):
        optimizer.step(closure)
    assert same_state([param.detach() for param in model.parameters()], params)
    assert len(inside.heard) == 1


@pytest.mark.parametrize("name", [*emo_torch.list_optimizers(), "emotional"])
def test_every_member_goes_through_prepare(name: str) -> None:
    accelerator = Accelerator(cpu=True)
    model = small_model()
    inside: Any
    if name == "emotional":
        inside = emo_torch.Emotional(torch.optim.AdamW(model.parameters(), lr=1e-3))
    else:
        inside = emo_torch.create_optimizer(name, model.parameters(), lr=1e-3)
    before = [param.detach().clone() for param in model.parameters()]
    model, optimizer = accelerator.prepare(model, inside)
    with losses_from_backward(accelerator):
        train(accelerator, model, optimizer, range(2))
    assert int(inside.step_count()) == 2
    assert not any(map(torch.equal, before, model.parameters()))


def test_wide_moments_of_narrow_parameters_go_through_prepare() -> None:
    param = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    inside = emo_torch.EmoSens([param], lr=1e-3)
    param.sum().backward()
    inside.step(loss=1.0)
    Accelerator(cpu=True).prepare(inside)
    assert inside.state[param]["exp_avg"].dtype == torch.float32


def test_nothing_is_left_behind() -> None:
    at_first = Accelerator.backward
    accelerator, model, optimizer, inside = prepared()
    with losses_from_backward(accelerator):
        assert Accelerator.backward is at_first
        with losses_from_backward():
            assert Accelerator.backward is not at_first
            losses = train(accelerator, model, optimizer, range(1))
    assert inside.heard == losses
    assert "backward" not in vars(accelerator)
    assert Accelerator.backward is at_first
    with pytest.raises(ZeroDivisionError), losses_from_backward(accelerator):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), losses_from_backward():
        raise ZeroDivisionError
    assert "backward" not in vars(accelerator)
    assert Accelerator.backward is at_first
    with pytest.raises(emo_torch.LossMissingError):
        train(accelerator, model, optimizer, range(1))


def test_one_that_was_there_before_comes_back() -> None:
    accelerator, _, _, _ = prepared()
    calls = []
    accelerator.backward = lambda loss, **_: calls.append(loss)
    own = accelerator.backward
    with losses_from_backward(accelerator):
        accelerator.backward(torch.ones((), requires_grad=True))
    assert len(calls) == 1
    assert accelerator.backward is own


def test_optimizers_that_another_accelerator_prepared_hear_nothing() -> None:
    accelerator, model, _, inside = prepared()
    other = Accelerator(cpu=True)
    stranger = Listening(small_model(1).parameters(), lr=1e-2)
    other.prepare(stranger)
    unprepared = Listening(small_model(2).parameters(), lr=1e-2)
    plain = accelerator.prepare(torch.optim.SGD(small_model(3).parameters(), lr=1e-2))
    with losses_from_backward():
        accelerator.backward(mean_squared_error(model, 0))
        plain.step()
    assert inside._collected.loss is not None
    assert stranger._collected.loss is None
    assert unprepared._collected.loss is None


def test_with_two_optimizers_zero_grad_before_each_backward_keeps_their_losses_apart() -> None:
    accelerator = Accelerator(cpu=True)
    models = [small_model(seed) for seed in (0, 1)]
    insides = [Listening(model.parameters(), lr=1e-2) for model in models]
    optimizers = accelerator.prepare(*insides)
    losses: list[list[float]] = [[], []]
    with losses_from_backward(accelerator):
        for step in range(3):
            for model, optimizer, own in zip(models, optimizers, losses, strict=True):
                optimizer.zero_grad()
                loss = mean_squared_error(model, step)
                own.append(float(loss.detach()))
                accelerator.backward(loss)
                optimizer.step()
    assert [inside.heard for inside in insides] == losses


def test_optimizers_that_step_inside_backward_hear_the_loss_in_time() -> None:
    accelerator = Accelerator(cpu=True)
    model = small_model()
    insides = [Listening([param], lr=1e-2) for param in model.parameters()]
    optimizers = [accelerator.prepare(inside) for inside in insides]
    for param, optimizer in zip(model.parameters(), optimizers, strict=True):

        def step_now(param: torch.Tensor, optimizer: Any = optimizer) -> None:
            del param
            optimizer.step()
            optimizer.zero_grad()

        param.register_post_accumulate_grad_hook(step_now)
    with losses_from_backward(accelerator):
        losses = []
        for step in range(3):
            loss = mean_squared_error(model, step)
            losses.append(float(loss.detach()))
            accelerator.backward(loss)
    assert [inside.heard for inside in insides] == [losses] * len(insides)


def test_training_goes_on_from_its_last_state_to_the_last_bit(tmp_path: Path) -> None:
    accelerator, model, optimizer, whole = prepared(2)
    scheduler = accelerator.prepare(torch.optim.lr_scheduler.StepLR(whole, 2, 0.5))
    with losses_from_backward(accelerator):
        train(accelerator, model, optimizer, range(6))
        scheduler.step()
        accelerator.save_state(str(tmp_path))
        train(accelerator, model, optimizer, range(6, 12))
    state = whole.state_dict()
    params = [param.detach().clone() for param in model.parameters()]

    for shared in (AcceleratorState, PartialState, GradientState):
        shared._reset_state()
    accelerator, model, optimizer, resumed = prepared(2)
    accelerator.prepare(torch.optim.lr_scheduler.StepLR(resumed, 2, 0.5))
    accelerator.load_state(str(tmp_path))
    with losses_from_backward(accelerator):
        train(accelerator, model, optimizer, range(6, 12))
    assert same_state(resumed.state_dict(), state)
    assert same_state([param.detach() for param in model.parameters()], params)
    assert resumed.heard == whole.heard[3:]


def test_train_and_eval_of_a_prepared_optimizer_reach_the_averaged_weights() -> None:
    accelerator = Accelerator(cpu=True)
    model = small_model()
    inside = emo_torch.EmoPilot(model.parameters())
    model, optimizer = accelerator.prepare(model, inside)
    with losses_from_backward(accelerator):
        train(accelerator, model, optimizer, range(12))
    first = next(iter(model.parameters()))
    trained, average = first.detach().clone(), inside.state[first]["average"].clone()
    optimizer.eval()
    assert torch.equal(first, average)
    optimizer.train()
    assert torch.equal(first, trained)
    assert not torch.equal(trained, average)
