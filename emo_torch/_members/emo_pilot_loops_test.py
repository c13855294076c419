"""EmoPilot in training loops: scalers, micro-batches, groups, clipping, torch.compile."""

import math

import numpy as np
import pytest
import torch

import emo_torch
from emo_torch._members.emo_pilot_test import assert_close, drive, problem, start, train
from emo_torch._testing import mean_squared_error, same_state, small_model

# In a training loop.


def test_a_scaler_that_finds_an_overflow_skips_and_a_scaled_step_is_an_unscaled_one() -> None:
    model, plain = small_model(), small_model()
    optimizer, twin = emo_torch.EmoPilot(model.parameters()), emo_torch.EmoPilot(plain.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(6):
        optimizer.zero_grad()
        loss = mean_squared_error(model, step)
        scaler.scale(loss).backward()
        if step == 3:
            next(model.parameters()).grad.fill_(math.inf)  # type: ignore[union-attr]
        else:
            train(plain, twin, range(step, step + 1))
        scaler.step(optimizer, loss=loss)
        scaler.update()
    assert all(map(torch.equal, model.parameters(), plain.parameters()))
    assert same_state(optimizer.state_dict(), twin.state_dict())


def test_micro_batches_take_the_step_of_their_mean() -> None:
    model, plain = small_model().double(), small_model().double()
    optimizer, twin = emo_torch.EmoPilot(model.parameters()), emo_torch.EmoPilot(plain.parameters())

    def loss_of(net: torch.nn.Module, step: int) -> torch.Tensor:
        inputs = torch.randn(4, 4, generator=torch.Generator().manual_seed(step)).double()
        loss: torch.Tensor = (net(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        return loss

    for step in range(8):
        optimizer.zero_grad()
        for part in (0, 1):
            loss = optimizer.watch(loss_of(model, 2 * step + part))
            (loss / 2).backward()
        optimizer.step()
        twin.zero_grad()
        mean = (loss_of(plain, 2 * step) + loss_of(plain, 2 * step + 1)) / 2
        mean.backward()
        twin.step(loss=mean)
    assert_close(model.parameters(), [param.detach().numpy() for param in plain.parameters()], 1e-12)


def test_frozen_and_late_parameters_keep_counts_of_their_own() -> None:
    model = small_model()
    late = next(model.parameters())
    late.requires_grad_(False)
    optimizer = emo_torch.EmoPilot(model.parameters())
    before = late.detach().clone()
    train(model, optimizer, range(4))
    assert torch.equal(late, before)
    assert late not in optimizer.state
    late.requires_grad_(True)
    train(model, optimizer, range(4, 7))
    assert int(optimizer.state[late]["step"]) == 3
    assert int(optimizer.pilot.steps) == 7
    assert torch.isfinite(late).all()
    optimizer.eval()
    optimizer.train()
    assert torch.isfinite(late).all()


def test_groups_have_learning_rates_of_their_own_and_one_courage() -> None:
    params, grads, losses = problem()
    own = start(params)
    optimizer = emo_torch.EmoPilot([{"params": own[:1], "lr": 0.0}, {"params": own[1:]}], lr=1e-3)  # type: ignore[arg-type]
    drive(optimizer, grads, losses)
    assert np.array_equal(own[0].detach().numpy(), params["a"])
    assert all(
        not np.array_equal(o.detach().numpy(), w)
        for o, w in zip(own[1:], [params["b"], params["c"]], strict=True)
    )
    first, second = (group["pilot_courage"] for group in optimizer.param_groups)
    assert first is second
    with pytest.raises(ValueError, match="max_courage"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "max_courage": 2.0})


def test_clipping_before_the_step_is_a_smaller_gradient() -> None:
    model, plain = small_model(), small_model()
    optimizer, twin = emo_torch.EmoPilot(model.parameters()), emo_torch.EmoPilot(plain.parameters())
    for step in range(5):
        for net, each in ((model, optimizer), (plain, twin)):
            each.zero_grad()
            loss = mean_squared_error(net, step)
            loss.backward()
            if net is model:
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1e9)
            each.step(loss=loss)
    assert all(map(torch.equal, model.parameters(), plain.parameters()))


def test_a_compiled_step_is_one_graph_and_the_same_step() -> None:
    params, grads, losses = problem(steps=12)
    own, other = start(params, torch.float32), start(params, torch.float32)
    optimizer = emo_torch.EmoPilot(own, lr=torch.tensor(1e-2), foreach=True)
    twin = emo_torch.EmoPilot(other, lr=torch.tensor(1e-2), foreach=True)
    drive(optimizer, grads[:2], losses[:2])
    drive(twin, grads[:2], losses[:2])
    compiled = torch.compile(lambda loss: optimizer.step(loss=loss), fullgraph=True, backend="eager")
    for values, loss in zip(grads[2:], losses[2:], strict=True):
        for param, value in zip(own, values.values(), strict=True):
            param.grad = torch.tensor(value).to(param.dtype)
        compiled(torch.tensor(loss))
    drive(twin, grads[2:], losses[2:])
    assert all(map(torch.equal, own, other))
