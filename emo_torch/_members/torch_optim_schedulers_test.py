"""Schedulers, scalers and averages of torch around the optimizers of this package."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import lr_scheduler

from emo_torch._members.torch_optim_test import Problem, assert_same, every_optimizer

pytest.importorskip("expecttest")


# Schedulers, scalers and averages.

SCHEDULERS: dict[str, tuple[Callable[[Any], Any], Callable[[int], float]]] = {
    "LambdaLR": (
        lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 1.0 / (1 + epoch)),
        lambda step: 1.0 / (1 + step),
    ),
    "CosineAnnealingLR": (
        lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=4),
        lambda step: (1.0, 0.8535533905932737, 0.5, 0.14644660940672627, 0.0)[step],
    ),
    "StepLR": (
        lambda opt: lr_scheduler.StepLR(opt, step_size=2, gamma=0.5),
        lambda step: 0.5 ** (step // 2),
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@every_optimizer
def test_a_scheduler_s_learning_rate_is_the_one_that_steps(info: Any, name: str) -> None:
    make, factor = SCHEDULERS[name]
    weight = Parameter(torch.full((1,), 8.0, dtype=torch.float64))
    optimizer = info.optim_cls([weight], lr=0.5, weight_decay=0.25)
    scheduler = make(optimizer)
    expected = 8.0
    for step in range(5):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * factor(step))
        weight.grad = torch.zeros_like(weight)
        optimizer.step(loss=1.0)
        scheduler.step()
        expected *= 1.0 - 0.5 * factor(step) * 0.25
        assert weight.item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("foreach", [False, True])
@every_optimizer
def test_one_cycle_moves_learning_rate_and_first_beta(info: Any, foreach: bool) -> None:
    problem = Problem(info, {"lr": 0.01, "foreach": foreach})
    scheduler = lr_scheduler.OneCycleLR(problem.optimizer, max_lr=0.05, total_steps=10)
    rates, betas = [], []
    for _ in range(9):
        rates.append(problem.optimizer.param_groups[0]["lr"])
        betas.append(problem.optimizer.param_groups[0]["betas"][0])
        problem.step()
        scheduler.step()
    assert max(rates) == pytest.approx(0.05)
    assert min(betas) == pytest.approx(0.85)
    assert rates[0] == pytest.approx(0.002)


@every_optimizer
def test_a_plateau_lowers_the_learning_rate(info: Any) -> None:
    problem = Problem(info, {"lr": 0.01})
    scheduler = lr_scheduler.ReduceLROnPlateau(problem.optimizer, factor=0.1, patience=1)
    for _ in range(4):
        problem.step()
        scheduler.step(1.0)
    assert problem.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


@every_optimizer
def test_a_scheduler_s_tensor_learning_rate_is_filled_in_place(info: Any) -> None:
    problem = Problem(info, {"lr": torch.tensor(0.1)})
    tensor = problem.optimizer.param_groups[0]["lr"]
    scheduler = lr_scheduler.ExponentialLR(problem.optimizer, gamma=0.5)
    problem.step()
    scheduler.step()
    assert problem.optimizer.param_groups[0]["lr"] is tensor
    assert tensor.item() == pytest.approx(0.05)


@every_optimizer
def test_a_scaler_hands_the_loss_on_and_leaves_out_what_overflowed(info: Any) -> None:
    scaled, plain = Problem(info, {"lr": 0.01}), Problem(info, {"lr": 0.01})
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(*, overflow: bool = False) -> Any:
        scaled.optimizer.zero_grad()
        loss = (scaled.weight.mv(scaled.input) + scaled.bias).pow(2).mean()
        scaler.scale(loss).backward()
        if overflow:
            assert scaled.bias.grad is not None
            scaled.bias.grad[0] = float("inf")
        returned = scaler.step(scaled.optimizer, loss=loss)
        scaler.update()
        return returned

    for _ in range(3):
        assert isinstance(step(), Tensor)
        plain.step()
    assert_same(scaled.params(), plain.params())
    assert scaled.optimizer.emotion == plain.optimizer.emotion
    before, emotion = scaled.params(), scaled.optimizer.emotion
    assert step(overflow=True) is None
    assert_same(scaled.params(), before)
    assert scaled.optimizer.emotion == emotion
    assert scaler.get_scale() == 512.0


@every_optimizer
def test_averages_of_the_weights_go_along(info: Any) -> None:
    net = torch.nn.Linear(2, 1)
    optimizer = info.optim_cls(net.parameters(), lr=0.1)
    averaged = torch.optim.swa_utils.AveragedModel(net)
    schedule = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.05)
    seen = []
    for step in range(3):
        optimizer.zero_grad()
        loss = net(torch.full((1, 2), 1.0 + step)).square().sum()
        loss.backward()
        optimizer.step(loss=loss)
        averaged.update_parameters(net)
        schedule.step()
        seen.append(net.weight.detach().clone())
    torch.testing.assert_close(averaged.module.weight, torch.stack(seen).mean(dim=0))
