"""torch.compile of a step of replicas, and parameters that are split over both axes of a mesh."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import emo_torch
from emo_torch._distributed.processes_test import Place, in_processes
from emo_torch._distributed.training_test import (
    KINDS,
    LOSSES,
    Net,
    assert_close,
    assert_same_in_all,
    backward,
    batch,
    everything,
    options_of,
    own_loss,
    train,
    whole,
)


@contextlib.contextmanager
def no_recompiling() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def first_gradients(net: Net) -> None:
    backward(net, 0, None)


@pytest.mark.parametrize(
    ("name", "how"),
    [*((name, "given") for name in KINDS), ("emo_sens", "observed"), ("emo_sens", "watched")],
)
def test_a_step_compiles_once_for_all_losses_and_learning_rates(name: str, how: str) -> None:
    pair = []
    for compiled in (False, True):
        net = Net()
        options = {**options_of(name), "lr": torch.tensor(1e-2), "capturable": True}
        optimizer = emo_torch.create_optimizer(name, net.parameters(), foreach=True, **options)
        backward(net, 0, None)
        optimizer.step(loss=2.0)  # Makes the state.
        step = torch.compile(optimizer.step, backend="eager", fullgraph=True) if compiled else None
        take = optimizer.step if step is None else step
        with no_recompiling():
            for number in range(6):
                optimizer.zero_grad(set_to_none=False)
                inputs, targets = batch(number)
                loss = (net(inputs) - targets).square().mean()
                if how == "watched":
                    optimizer.watch(loss)
                loss.backward()
                if how == "observed":
                    optimizer.observe(loss)
                optimizer.param_groups[0]["lr"].fill_(1e-2 / (number + 1))
                take(loss=loss.detach()) if how == "given" else take()
        pair.append(everything(net, optimizer))
    assert_close(pair[0], pair[1], 1e-6)


@in_processes(2)
def test_a_step_of_replicas_compiles_to_one_graph_with_the_mean_in_it(place: Place) -> None:
    pair = []
    for compiled in (False, True):
        net = DistributedDataParallel(Net())
        optimizer = emo_torch.EmoSens(net.parameters(), lr=torch.tensor(1e-2), foreach=True)
        train(net, optimizer, range(1), place)
        step = torch.compile(optimizer.step, backend="eager", fullgraph=True) if compiled else None
        take = optimizer.step if step is None else step
        with no_recompiling():
            for number in range(1, 6):
                optimizer.zero_grad(set_to_none=False)
                backward(net, number, place)
                optimizer.param_groups[0]["lr"].fill_(1e-2 / number)
                take(loss=torch.tensor(own_loss(number, place)))
        found = everything(net, optimizer)
        assert_same_in_all(found, place)
        pair.append(found)
    assert_close(pair[0], pair[1], 1e-6)


def split_over_both_axes(place: Place) -> Net:
    """Makes a net for tensor parallelism on one axis of a mesh, and shards it over the other one."""
    del place
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "parts"))
    net = Net()
    parallelize_module(net, mesh["parts"], {"first": ColwiseParallel(), "second": RowwiseParallel()})
    for part in (net.first, net.second):
        fully_shard(part, mesh=mesh["data"])
    return net


@pytest.mark.parametrize(
    ("name", "rounding"),
    [
        ("emo_airy", "nearest"),
        ("emo_neco", "nearest"),
        ("ref_adamw_mini_schedule_free", "nearest"),
        ("emo_sens", "stochastic"),
    ],
)
@in_processes(4)
def test_parameters_split_over_both_axes_of_a_mesh_step_as_whole_ones(
    place: Place, name: str, rounding: str
) -> None:
    laid = [param.detach() for param in split_over_both_axes(place).parameters()]
    dtype = torch.float32 if rounding == "nearest" else torch.bfloat16
    generator = torch.Generator().manual_seed(5)
    whole_ones = [torch.randn(param.shape, generator=generator).to(dtype) for param in laid]

    def lay(tensor: Tensor, like: Tensor) -> Tensor:
        if not isinstance(like, DTensor):
            return tensor
        everywhere = [Replicate()] * like.device_mesh.ndim
        return distribute_tensor(tensor, like.device_mesh, everywhere).redistribute(
            placements=like.placements
        )

    options = {**options_of(name), "rounding": rounding, "process_group": False}
    for foreach in (False, True):
        ours = [torch.nn.Parameter(lay(*pair)) for pair in zip(whole_ones, laid, strict=True)]
        theirs = [torch.nn.Parameter(param.clone()) for param in whole_ones]
        pair = [
            emo_torch.create_optimizer(name, params, foreach=foreach, **options)
            for params in (ours, theirs)
        ]
        for loss in LOSSES:
            for param, other in zip(ours, theirs, strict=True):
                other.grad = torch.randn(other.shape, generator=generator).to(dtype)
                param.grad = lay(other.grad, param)
            for optimizer in pair:
                optimizer.step(loss=loss)
        bound = 1e-5 if rounding == "nearest" else 0.0
        for param, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(whole(param.detach()), other.detach(), rtol=bound, atol=bound)
