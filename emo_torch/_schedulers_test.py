"""Every schedule of `torch.optim.lr_scheduler` gives the learning rates that AdamW gets, and they act."""

import copy
import inspect
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler, swa_utils
from torch.optim.lr_scheduler import LRScheduler

import emo_torch

STEPS = 9
"""Steps of each run: more than any schedule below needs to turn."""
RESUMED = 4
"""The step after which a run is saved, and goes on from the file."""


def constant_then_exponential(optimizer: Any) -> Any:
    parts = [lr_scheduler.ConstantLR(optimizer, 0.5, 2), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[3])


def constant_times_exponential(optimizer: Any) -> Any:
    parts = [lr_scheduler.ConstantLR(optimizer, 0.5, 2), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return lr_scheduler.ChainedScheduler(parts, optimizer)


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(
        optimizer, [lambda k: 0.9**k, lambda k: 1 / (k + 1)]
    ),
    "MultiplicativeLR": lambda optimizer: lr_scheduler.MultiplicativeLR(optimizer, lambda _: 0.9),
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 2, 0.5),
    "MultiStepLR": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [2, 5], 0.5),
    "ConstantLR": lambda optimizer: lr_scheduler.ConstantLR(optimizer, 0.5, 3),
    "LinearLR": lambda optimizer: lr_scheduler.LinearLR(optimizer, 0.25, 1.0, 4),
    "ExponentialLR": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.8),
    "SequentialLR": constant_then_exponential,
    "PolynomialLR": lambda optimizer: lr_scheduler.PolynomialLR(optimizer, 6, 2.0),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 5, 1e-3),
    "ChainedScheduler": constant_times_exponential,
    "ReduceLROnPlateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=1, factor=0.5, min_lr=[1e-3, 2e-2]
    ),
    "CyclicLR": lambda optimizer: lr_scheduler.CyclicLR(
        optimizer, 1e-2, 0.2, step_size_up=3, cycle_momentum=False
    ),
    "CyclicLR, momentum": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 1e-2, 0.2, step_size_up=3),
    "CosineAnnealingWarmRestarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, 3, 2
    ),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(
        optimizer, [0.2, 0.4], total_steps=STEPS + 1, cycle_momentum=False
    ),
    "OneCycleLR, momentum": lambda optimizer: lr_scheduler.OneCycleLR(
        optimizer, [0.2, 0.4], total_steps=STEPS + 1
    ),
    "SWALR": lambda optimizer: swa_utils.SWALR(optimizer, 1e-2, anneal_epochs=5),
}
"""Each schedule, made for an optimizer of two groups."""


def sens(groups: Any, lr: Any) -> Any:
    return emo_torch.EmoSens(groups, lr=lr)


def wrapped_adamw(groups: Any, lr: Any) -> Any:
    return emo_torch.Emotional(torch.optim.AdamW(groups, lr=lr))


FAMILY: dict[str, Callable[..., Any]] = {
    **{
        name: lambda groups, lr, name=name: emo_torch.create_optimizer(name, groups, lr=lr)
        for name in emo_torch.list_optimizers()
    },
    "emotional": wrapped_adamw,
    # Its bounds on a tensor's rate are not in the way.
    "ref_adamw_mini_schedule_free": lambda groups, lr: emo_torch.RefAdamWMiniScheduleFree(
        groups, lr=lr, max_lr=1.0
    ),
}


class Run:
    """An optimizer of two groups with a schedule."""

    def __init__(self, make: Callable[..., Any], schedule: str | None, is_tensor: bool = False) -> None:
        torch.manual_seed(0)
        self.params = [torch.nn.Parameter(torch.randn(3, 2)) for _ in range(2)]
        rates: Any = [torch.tensor(0.1), torch.tensor(0.3)] if is_tensor else [0.1, 0.3]
        groups = [{"params": [param], "lr": lr} for param, lr in zip(self.params, rates, strict=True)]
        self.optimizer = make(groups, rates[0])
        self.schedule: Any = SCHEDULES[schedule](self.optimizer) if schedule else None
        self.seen: list[Any] = []

    def take_step(self, step: int) -> None:
        """The same gradients and losses for every optimizer; writes down the arguments of the step."""
        self.seen.append([(float(group["lr"]), group["betas"]) for group in self.optimizer.param_groups])
        loss = [1.0, 0.9, 1.2, 1.3, 1.1, 0.7, 0.8, 0.9, 0.6][step]
        for index, param in enumerate(self.params):
            generator = torch.Generator().manual_seed(2 * step + index)
            param.grad = torch.randn(param.shape, generator=generator)
        self.optimizer.step(lambda: loss)
        if isinstance(self.schedule, lr_scheduler.ReduceLROnPlateau):
            self.schedule.step(loss)
        elif self.schedule is not None:
            self.schedule.step()

    def take_steps(self, first: int = 0, last: int = STEPS) -> None:
        for step in range(first, last):
            self.take_step(step)


def assert_same_params(ours: Run, theirs: Run) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours.params, theirs.params, strict=True))


def test_every_schedule_that_there_is_is_here() -> None:
    public = {
        name
        for name, cls in inspect.getmembers(lr_scheduler, inspect.isclass)
        if issubclass(cls, LRScheduler) and not name.startswith("_") and cls is not LRScheduler
    }
    assert public <= {name.partition(",")[0] for name in SCHEDULES}


@pytest.mark.parametrize("is_tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rates_are_those_of_adamw_and_the_steps_take_them(name: str, is_tensor: bool) -> None:
    ours, adamw = Run(sens, name, is_tensor), Run(torch.optim.AdamW, name, is_tensor)
    by_hand = Run(sens, None)
    for step in range(STEPS):
        for group, scheduled in zip(
            by_hand.optimizer.param_groups, ours.optimizer.param_groups, strict=True
        ):
            group.update(lr=float(scheduled["lr"]), betas=scheduled["betas"])
        for run in (ours, adamw, by_hand):
            run.take_step(step)
        if not is_tensor:  # A float32 rate is another number than a float64 one.
            assert_same_params(ours, by_hand)
        torch.testing.assert_close(ours.params, by_hand.params, rtol=1e-5, atol=1e-6)
    assert ours.seen == adamw.seen
    rates = {rate for step in ours.seen for rate, _ in step}
    assert len(rates) > 2  # It turns within these steps.
    if is_tensor:
        assert all(isinstance(group["lr"], torch.Tensor) for group in ours.optimizer.param_groups)


@pytest.mark.parametrize("name", ["LambdaLR", "OneCycleLR, momentum", "CyclicLR, momentum"])
@pytest.mark.parametrize("member", FAMILY)
def test_every_member_takes_the_rates_of_a_schedule(member: str, name: str) -> None:
    ours, adamw, by_hand = (
        Run(FAMILY[member], name),
        Run(torch.optim.AdamW, name),
        Run(FAMILY[member], None),
    )
    constant = Run(FAMILY[member], None)
    for step in range(STEPS):
        for group, scheduled in zip(
            by_hand.optimizer.param_groups, ours.optimizer.param_groups, strict=True
        ):
            # `OneCycleLR` writes its bounds, too, by the names that one member has for its own.
            names = ("lr", "betas", "min_lr", "max_lr")
            group.update({name: scheduled[name] for name in names if name in scheduled})
        for run in (ours, adamw, by_hand, constant):
            run.take_step(step)
    # The second decay rate is each member's own, and no schedule's.
    for mine, reference in zip(ours.seen, adamw.seen, strict=True):
        assert [(rate, betas[0]) for rate, betas in mine] == [(rate, betas[0]) for rate, betas in reference]
    assert_same_params(ours, by_hand)
    assert not any(torch.equal(a, b) for a, b in zip(ours.params, constant.params, strict=True))


@pytest.mark.parametrize("is_tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_goes_on_from_a_file_with_its_schedule(name: str, is_tensor: bool) -> None:
    whole, first = Run(sens, name, is_tensor), Run(sens, name, is_tensor)
    whole.take_steps()
    first.take_steps(0, RESUMED)
    buffer = io.BytesIO()
    torch.save(first.optimizer.state_dict(), buffer)
    buffer.seek(0)
    resumed = Run(sens, name, is_tensor)
    resumed.optimizer.load_state_dict(torch.load(buffer, weights_only=True))
    resumed.schedule.load_state_dict(copy.deepcopy(first.schedule.state_dict()))
    with torch.no_grad():
        for param, saved in zip(resumed.params, first.params, strict=True):
            param.copy_(saved)
    resumed.take_steps(RESUMED)
    assert resumed.seen == whole.seen[RESUMED:]
    assert_same_params(resumed, whole)


def test_a_schedule_changes_nothing_of_the_groups_but_its_own() -> None:
    run, plain = Run(sens, "LinearLR"), Run(sens, None)
    run.take_steps()
    plain.take_steps()
    own = {"lr", "initial_lr"}
    for group, other in zip(run.optimizer.param_groups, plain.optimizer.param_groups, strict=True):
        assert {key for key in group if key not in own} == {key for key in other if key not in own}
    assert run.optimizer.param_groups[1]["initial_lr"] == 0.3


def test_one_cycle_sets_the_bounds_of_the_member_that_has_some() -> None:
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = emo_torch.RefAdamWMiniScheduleFree([param], lr=1e-3)
    lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=4, div_factor=10.0, final_div_factor=100.0)
    group = optimizer.param_groups[0]
    assert (group["max_lr"], group["min_lr"]) == (0.5, pytest.approx(5e-4))
