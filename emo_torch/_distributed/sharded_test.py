"""FSDP2 and DTensors: parameters, gradients and moments lie in parts on several processes."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import emo_torch
from emo_torch._distributed.processes_test import Place, in_processes
from emo_torch._distributed.training_test import (
    KINDS,
    LOSSES,
    MEMBERS,
    Net,
    alone,
    assert_close,
    assert_same_in_all,
    backward,
    everything,
    options_of,
    sharded,
    train,
    whole,
)
from emo_torch._pieces.sums import multi_tensor_norm_of, norm_of

WAYS: dict[str, dict[str, Any]] = {"single": {"foreach": False}, "multi": {"foreach": True}}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, "multi") for name in MEMBERS),
        *((name, "single") for name in (*KINDS, "emo_pilot", "emo_pilot_airy", "emo_tion")),
    ],
)
@in_processes(2)
def test_sharded_parameters_step_as_whole_ones(place: Place, name: str, way: str) -> None:
    # Each mode with each way, at one member at least; of the single way, one member of each kind.
    mode = ("decoupled", "l2", "absolute")[(MEMBERS.index(name) + list(WAYS).index(way)) % 3]
    options = {**options_of(name, mode), **WAYS[way], "maximize": way == "multi"}
    net = sharded(place)
    optimizer = emo_torch.create_optimizer(name, net.parameters(), **options)
    train(net, optimizer, range(len(LOSSES)), place)
    found = everything(net, optimizer)
    assert_same_in_all(found, place)
    twin, theirs = alone(name, len(LOSSES), **{**options, "foreach": False})
    assert_close(found, everything(twin, theirs), 1e-5)
    assert all(isinstance(param, DTensor) for param in net.parameters())
    parts = [optimizer.state[net.one], optimizer.state[net.column], optimizer.state[net.cube]]
    moments = [value for state in parts for value in state.values() if value.ndim > 0]
    assert all(isinstance(value, DTensor) for value in moments)


@in_processes(2)
def test_compiled_code_leaves_sharded_parameters_to_the_other_ways(place: Place) -> None:
    net, other = sharded(place), sharded(place)
    ours = emo_torch.EmoAiry(net.parameters(), lr=1e-2, fused=True)
    theirs = emo_torch.EmoAiry(other.parameters(), lr=1e-2, foreach=False)
    for some, optimizer in ((net, ours), (other, theirs)):
        train(some, optimizer, range(4), place)
    assert_close(everything(net, ours), everything(other, theirs), 0.0)


@in_processes(2)
def test_moments_in_8_bits_refuse_sharded_parameters_and_name_the_way_out(place: Place) -> None:
    mesh = init_device_mesh("cpu", (2,))
    whole_one = torch.nn.Parameter(torch.ones(64, 64))
    for placement in (Shard(0), Replicate()):
        param = torch.nn.Parameter(distribute_tensor(torch.ones(64, 64), mesh, [placement]))
        with pytest.raises(ValueError, match=r"\(64, 64\) is sharded: use moment_dtype=torch.bfloat16"):
            emo_torch.EmoSens([param], moment_dtype="8bit")
        optimizer = emo_torch.EmoSens([whole_one], moment_dtype="8bit")
        with pytest.raises(ValueError, match="is sharded"):
            optimizer.add_param_group({"params": [param]})
        # The way out that the message names.
        narrow = emo_torch.EmoSens([param], moment_dtype=torch.bfloat16)
        param.grad = distribute_tensor(torch.ones(64, 64), mesh, [placement])
        narrow.step(loss=1.0)
        assert narrow.state[param]["exp_avg"].dtype == torch.bfloat16
    del place


SHAPES = ((5, 3), (1, 4), (4, 1), (3,), (1,), (3, 2, 5), (0, 3))
PLACEMENTS = {"first axis": Shard(0), "last axis": Shard(-1), "everywhere": Replicate()}


def tensors(dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def laid_out(tensor: Tensor, mesh: Any, placement: Any) -> Tensor:
    at = Shard(tensor.ndim - 1) if placement == Shard(-1) else placement
    return distribute_tensor(tensor, mesh, [at])


def train_on_given_gradients(
    name: str, lay: Callable[[int, Tensor], Tensor], dtype: torch.dtype, **options: Any
) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Steps on gradients that are the same in all processes, laid out in some way; returns all, whole."""
    params = [torch.nn.Parameter(lay(index, param)) for index, param in enumerate(tensors(dtype, seed=1))]
    optimizer = emo_torch.create_optimizer(name, params, **options)
    for step, loss in enumerate(LOSSES):
        grads = tensors(dtype, seed=10 + step)
        for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
            param.grad = lay(index, grad)
        optimizer.step(loss=loss)
    return [
        (whole(param.detach()), {key: whole(value) for key, value in optimizer.state[param].items()})
        for param in params
    ]


def assert_equal(ours: Any, theirs: Any, bound: float = 0.0) -> None:
    for (param, state), (wanted, kept) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(param, wanted, rtol=bound, atol=bound)
        assert state.keys() == kept.keys()
        for key, value in state.items():
            torch.testing.assert_close(value, kept[key], rtol=bound, atol=bound)


@pytest.mark.parametrize("rounding", ["kahan", "stochastic"])
@pytest.mark.parametrize("placement", PLACEMENTS)
@in_processes(2)
def test_sharded_parameters_are_rounded_as_whole_ones_to_the_last_bit(
    place: Place, placement: str, rounding: str
) -> None:
    del place
    mesh = init_device_mesh("cpu", (2,))
    at = PLACEMENTS[placement]
    for foreach in (False, True):
        options = {"rounding": rounding, "foreach": foreach, "lr": 1e-3}
        ours = train_on_given_gradients(
            "emo_sens", lambda _, tensor: laid_out(tensor, mesh, at), torch.bfloat16, **options
        )
        theirs = train_on_given_gradients("emo_sens", lambda _, tensor: tensor, torch.bfloat16, **options)
        assert_equal(ours, theirs)


@pytest.mark.parametrize("name", MEMBERS)
@in_processes(2)
def test_a_group_may_mix_whole_parameters_and_ones_sharded_in_many_ways(place: Place, name: str) -> None:
    del place
    mesh, other = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2))
    ways = itertools.cycle(PLACEMENTS.values())
    chosen = [next(ways) if index % 4 else None for index in range(len(SHAPES))]

    def lay(index: int, tensor: Tensor) -> Tensor:
        if chosen[index] is None:
            return tensor
        if index == 2:
            return distribute_tensor(tensor, other, [Replicate(), Shard(0)])
        return laid_out(tensor, mesh, chosen[index])

    options = {**options_of(name), "foreach": True}
    ours = train_on_given_gradients(name, lay, torch.float32, **options)
    theirs = train_on_given_gradients(name, lambda _, tensor: tensor, torch.float32, **options)
    assert_equal(ours, theirs, 1e-5)


@in_processes(2)
def test_the_moments_of_a_sharded_gradient_are_those_of_the_whole(place: Place) -> None:
    mesh = init_device_mesh("cpu", (2,))
    grads = tensors(torch.float32, seed=3)
    parts = [laid_out(grad, mesh, Shard(0)) for grad in grads]
    expected = emo_torch.gradient_moments(grads)
    torch.testing.assert_close(emo_torch.gradient_moments(parts), expected)
    torch.testing.assert_close(emo_torch.gradient_moments([*parts[:2], *grads[2:]]), expected)
    net, twin = sharded(place), Net()
    ours, theirs = (torch.optim.AdamW(some.parameters(), lr=1e-2) for some in (net, twin))
    monitors = emo_torch.scale_by_runaway(ours), emo_torch.scale_by_runaway(theirs)
    for step in range(4):
        for some, optimizer, at in ((net, ours, place), (twin, theirs, None)):
            optimizer.zero_grad()
            backward(some, step, at)
            optimizer.step()
        torch.testing.assert_close(monitors[0].runaway.moments, monitors[1].runaway.moments)
    assert_close(everything(net, ours), everything(twin, theirs), 1e-5)


@in_processes(2)
def test_the_norms_of_a_large_sharded_tensor_are_those_of_the_whole(place: Place) -> None:
    mesh = init_device_mesh("cpu", (2,))
    # One process has more than a block of the second tensor, and the other one less.
    for shape in ((70, 41), (1025, 1), (1026,), (3,)):
        plain = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
        for placement in (Shard(0), Shard(len(shape) - 1), Replicate()):
            tensor = distribute_tensor(plain, mesh, [placement])
            for order in (1.0, 2.0):
                norm = norm_of(tensor, order)
                assert not isinstance(norm, DTensor)
                torch.testing.assert_close(norm, norm_of(plain, order), rtol=2e-7, atol=0.0)
            both = multi_tensor_norm_of([tensor, tensor])
            assert_same_in_all({"norms": torch.stack(both)}, place)
            torch.testing.assert_close(both[1], norm_of(plain), rtol=2e-7, atol=0.0)


@pytest.mark.parametrize("foreach", [False, True], ids=["single", "multi"])
@in_processes(2)
def test_any_optimizer_made_emotional_steps_sharded_parameters_as_whole_ones(
    place: Place, foreach: bool
) -> None:
    pair = []
    for net, at in ((sharded(place), place), (Net(), None)):
        inner = torch.optim.AdamW(net.parameters(), lr=1e-2, foreach=foreach)
        keep = emo_torch.keep_rows_and_columns(eps=0.0)
        group = None if at else False
        optimizer = emo_torch.Emotional(inner, keep=keep, theta=0.3, use_shadow=True, process_group=group)
        train(net, optimizer, range(len(LOSSES)), at)
        pair.append(everything(net, optimizer))
    assert_close(pair[0], pair[1], 1e-5)


@pytest.mark.parametrize("way", WAYS)
@in_processes(2)
def test_a_step_of_emo_pilot_adds_up_all_norms_and_products_in_one_reduction(
    place: Place, way: str
) -> None:
    net = sharded(place)
    optimizer = emo_torch.EmoPilot(net.parameters(), process_group=False, **WAYS[way])
    for step in range(3):
        optimizer.zero_grad()
        backward(net, step, place)
        with CommDebugMode() as communication:
            optimizer.step(loss=2.0)
        counts = communication.get_comm_counts()
        assert {str(name): count for name, count in counts.items()} == {"c10d_functional.all_reduce": 1}


@in_processes(2)
def test_a_loss_may_be_sharded_itself(place: Place) -> None:
    del place
    mesh = init_device_mesh("cpu", (2,))
    errors: Any = distribute_tensor(torch.tensor([1.0, 2.0, 6.0]), mesh, [Shard(0)])
    for loss in (errors.sum(), errors.mean()):
        optimizer = emo_torch.EmoSens([torch.nn.Parameter(torch.ones(2))])
        optimizer.step(loss=loss)
        assert optimizer.emotion.long == loss.full_tensor()


@pytest.mark.parametrize("name", ["emo_airy", "ref_adamw_mini_schedule_free", "emo_pilot"])
@in_processes(4)
def test_shards_with_replicas_step_as_one_process(place: Place, name: str) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    net = Net()
    fully_shard(net, mesh=mesh)
    optimizer = emo_torch.create_optimizer(name, net.parameters(), **options_of(name))
    train(net, optimizer, range(len(LOSSES)), place)
    found = everything(net, optimizer)
    assert_same_in_all(found, place)
    twin, theirs = alone(name, len(LOSSES), **options_of(name))
    assert_close(found, everything(twin, theirs), 1e-5)
