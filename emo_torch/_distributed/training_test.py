"""The net, the losses and the comparisons of the tests in several processes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import emo_torch
from emo_torch._distributed.processes_test import Place

MEMBERS = tuple(emo_torch.list_optimizers())
TOGETHER = ("emo_pilot", "emo_pilot_airy", "emo_tion", "emo_void")
APART = tuple(name for name in MEMBERS if name not in TOGETHER)
"""Members that step the same if each parameter has its own optimizer: no norm over all parameters."""
KINDS = ("emo_sens", "emo_airy", "emo_cats", "emo_clan", "ref_adamw_mini_schedule_free")
"""Members with all kinds of state and rules: every other member works like one of these."""
NAN = float("nan")
LOSSES = (2.0, 2.1, 2.3, 1.9, 2.05, NAN, 2.0, 9.0, 2.0, 1.2, 1.95, 2.2)
"""Losses that lead through every band of the scalar, and one that is not finite."""


class Net(torch.nn.Module):
    """A net whose parts come out uneven in two processes, and some empty in one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(6, 5)
        self.second = torch.nn.Linear(5, 3)
        self.one = torch.nn.Parameter(torch.full([1], 0.7))
        self.cube = torch.nn.Parameter(torch.randn(1, 4, 3))
        self.column = torch.nn.Parameter(torch.randn(3, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.second(torch.tanh(self.first(inputs)))
        return hidden * self.one + self.cube.sum(1) + self.column.sum(1)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(8, 6, generator=generator), torch.randn(8, 3, generator=generator)


def own_share(step: int, place: Place | None) -> tuple[Tensor, Tensor]:
    inputs, targets = batch(step)
    if place is None:
        return inputs, targets
    return inputs.chunk(place.size)[place.rank], targets.chunk(place.size)[place.rank]


def own_loss(step: int, place: Place | None) -> float:
    """Returns a loss of this process's own; over the processes their mean is that of one process."""
    loss = LOSSES[step % len(LOSSES)]
    if place is None:
        return loss
    if loss != loss:  # Not finite in one process only.
        return NAN if place.rank == 1 else 2.0
    return loss * (1.0 + 0.25 * (1.0 if place.rank % 2 else -1.0))


def backward(net: torch.nn.Module, step: int, place: Place | None) -> Tensor:
    """Leaves the gradients of a step, and returns its loss."""
    inputs, targets = own_share(step, place)
    loss: Tensor = (net(inputs) - targets).square().mean()
    loss.backward()
    return loss.detach()


def train(net: torch.nn.Module, optimizer: Any, steps: Iterable[int], place: Place | None) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(net, step, place)
        optimizer.step(loss=own_loss(step, place))


def options_of(name: str, mode: str = "decoupled", **more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "weight_decay_mode": mode, **more}
    if name == "ref_adamw_mini_schedule_free":
        return {**options, "ref_max_steps": 10}
    if name.startswith("emo_pilot"):
        return options
    options["use_shadow"] = True
    if name in ("emo_sens", "emo_airy", "emo_cats"):
        options["theta"] = 0.3  # A filter that bites.
    return options


def alone(name: str, steps: int, **options: Any) -> tuple[Net, emo_torch.LossOptimizer]:
    """Trains on full batches, in this process alone."""
    net = Net()
    optimizer = emo_torch.create_optimizer(name, net.parameters(), process_group=False, **options)
    train(net, optimizer, range(steps), None)
    return net, optimizer


def whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def everything(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns parameters, state and the statistics of groups, as full tensors, by names."""
    found: dict[str, Tensor] = {}
    for name, param in net.named_parameters():
        found[name] = whole(param.detach()).clone()
        for key, value in optimizer.state.get(param, {}).items():
            found[f"{key} of {name}"] = whole(value).clone()
    for key, value in optimizer.param_groups[0].items():
        if isinstance(value, Tensor):
            found[key] = value.clone()
    return found


def assert_same_in_all(found: dict[str, Tensor], place: Place) -> None:
    """Asserts that all processes have the same, to the last bit."""
    for name, tensor in found.items():
        others = [torch.empty_like(tensor) for _ in range(place.size)]
        dist.all_gather(others, tensor.contiguous())
        for other in others:
            torch.testing.assert_close(other, tensor, rtol=0, atol=0, equal_nan=True, msg=name)


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], bound: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if name == "pulse_norm_kept":
            # EmoTion keeps a sum times the relative difference of two nearly equal sums: the rounding of a
            # sum is a large part of that. What the difference does to the parameters is compared.
            continue
        torch.testing.assert_close(
            tensor,
            theirs[name],
            rtol=bound,
            atol=bound,
            equal_nan=True,
            msg=(name + ": {}").format,
        )


def sharded(place: Place, dtype: torch.dtype = torch.float32) -> Net:
    net = Net().to(dtype)
    fully_shard(net, mesh=init_device_mesh("cpu", (place.size,)))
    return net


def assert_equal_params(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    for (name, param), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(param, other), name


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("step", range(len(LOSSES)))
def test_the_mean_of_own_losses_is_the_loss_of_one_process(step: int, size: int) -> None:
    if size == 1:
        assert own_loss(step, None) == pytest.approx(LOSSES[step], nan_ok=True)
    else:
        losses = [own_loss(step, Place(rank, size, Path())) for rank in range(size)]
        assert sum(losses) / size == pytest.approx(LOSSES[step], nan_ok=True)
