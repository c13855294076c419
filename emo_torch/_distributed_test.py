"""Many processes, really run: two or four on this machine's CPU, which talk through gloo.

A test marked `@in_processes` runs in each of them at once, with a `Place` that says in which one it is.
The processes start once and are kept; each test has process groups of its own.
"""

import contextlib
import copy
import inspect
import itertools
import multiprocessing
import os
import pickle
import re
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import emo_torch

pytest.importorskip("torch.distributed.fsdp", reason="THIS PYTORCH WAS BUILT WITHOUT torch.distributed")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("THIS PYTORCH WAS BUILT WITHOUT gloo", allow_module_level=True)

import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

MEMBERS = tuple(emo_torch.list_optimizers())
APART = tuple(name for name in MEMBERS if name not in ("emo_pilot", "emo_tion", "emo_void"))
"""Those that step the same when each parameter has an optimizer of its own: no norm over all of them."""
KINDS = ("emo_sens", "emo_airy", "emo_cats", "emo_clan", "ref_adamw_mini_schedule_free")
"""Those that all kinds of state and rules are among: the others keep and do what one of these does."""
NAN = float("nan")
LOSSES = (2.0, 2.1, 2.3, 1.9, 2.05, NAN, 2.0, 9.0, 2.0, 1.2, 1.95, 2.2)
"""Losses that lead through every band of the scalar, and one that is not finite."""
PATIENCE = 60.0
"""Seconds that a process waits for another one: more than any test takes."""


# Running in processes.


class Place(NamedTuple):
    """Which of the processes this is, how many there are, and a folder that they share."""

    rank: int
    size: int
    folder: Path


CASES: dict[str, Callable[..., None]] = {}


def in_processes(size: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a test one that runs in so many processes at once; parameters become its keywords."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        CASES[test.__name__] = test
        names = [name for name in test.__annotations__ if name not in ("place", "return")]

        def run(processes: Processes, tmp_path: Path, **given: Any) -> None:
            __tracebackhide__ = True
            failures = processes.run(test.__name__, size, tmp_path, given)
            assert not failures, "\n".join(failures)

        run.__name__ = test.__name__
        # pytest reads a signature for what to pass.
        run.__signature__ = _signature(["processes", "tmp_path", *names])  # type: ignore[attr-defined]
        return run

    return decorate


def _signature(names: list[str]) -> Any:
    return inspect.Signature([inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names])


class Processes:
    """Processes that wait for tests; as many are started as the largest test so far needed."""

    def __init__(self) -> None:
        self.pipes: list[Any] = []
        self.alive: list[Any] = []

    def run(self, name: str, size: int, folder: Path, given: dict[str, Any]) -> list[str]:
        """Runs a test in so many of them; returns what went wrong, by process."""
        context = multiprocessing.get_context("spawn")
        while len(self.alive) < size:
            mine, theirs = context.Pipe()
            self.alive.append(context.Process(target=_serve, args=(theirs,), daemon=True))
            self.alive[-1].start()
            self.pipes.append(mine)
        for rank, pipe in enumerate(self.pipes[:size]):
            pipe.send((name, Place(rank, size, folder), given))
        failures = []
        for rank, pipe in enumerate(self.pipes[:size]):
            try:
                answer = pipe.recv() if pipe.poll(2 * PATIENCE) else "no answer"
            except EOFError:
                answer = "it ended"
            if answer is not None:
                failures.append(f"in process {rank} of {size}: {answer}")
        if failures:  # One may have ended, or wait for the other.
            self.end()
        return failures

    def end(self) -> None:
        """Ends them."""
        for process in self.alive:
            process.kill()
            process.join()
        self.pipes, self.alive = [], []


def _serve(pipe: Any) -> None:
    """Runs the tests that come through a pipe, until it closes."""
    warnings.simplefilter("error")
    # A checkpoint that one process reads by itself, as it should.
    warnings.filterwarnings("ignore", "torch.distributed is disabled")
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    while True:
        try:
            name, place, given = pipe.recv()
        except EOFError:
            return
        answer = None
        try:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{place.folder}/store_of_{name}",
                rank=place.rank,
                world_size=place.size,
                timeout=timedelta(seconds=PATIENCE),
            )
            CASES[name](place, **given)
            dist.barrier()
        except BaseException:
            answer = traceback.format_exc()
        # The other one may wait for this one: it finds the group closed.
        with contextlib.suppress(Exception):
            dist.destroy_process_group()
        pipe.send(answer)


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    made.end()


# What is trained.


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
    if name == "emo_pilot":
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


# Comparing.


def whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def everything(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns parameters, state and what groups remember, whole, by names."""
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


# The mean of losses.


@in_processes(2)
def test_the_mean_of_losses_is_the_same_to_the_last_bit(place: Place) -> None:
    for dtype in (torch.float32, torch.float64):
        for losses in ((0.1, 0.7), (1e-8, 3e7), (2.0, 2.0)):
            mean = emo_torch.average_over_replicas(torch.tensor(losses[place.rank], dtype=dtype))
            assert mean.dtype == dtype
            assert_same_in_all({"mean": mean}, place)
            torch.testing.assert_close(mean, torch.tensor(losses, dtype=dtype).mean())


@in_processes(2)
def test_a_loss_may_be_averaged_over_a_group_or_not_at_all(place: Place) -> None:
    loss = torch.tensor(float(place.rank))
    groups = [dist.new_group([rank]) for rank in range(place.size)]
    own = groups[place.rank]
    for process_group in (False, own):
        assert emo_torch.average_over_replicas(loss, process_group) == place.rank
        optimizer = emo_torch.EmoSens([torch.nn.Parameter(torch.ones(2))], process_group=process_group)
        optimizer.observe(loss)
        optimizer.step()
        assert optimizer.emotion.long == place.rank
    assert emo_torch.average_over_replicas(loss, dist.group.WORLD) == 0.5
    assert loss == place.rank


@in_processes(2)
def test_a_process_group_that_this_process_is_not_in_is_refused(place: Place) -> None:
    groups = [dist.new_group([rank]) for rank in range(place.size)]
    for strange in (groups[1 - place.rank], "world", 0, True):
        with pytest.raises(TypeError, match="that this process belongs to"):
            emo_torch.EmoSens([torch.nn.Parameter(torch.ones(2))], process_group=strange)


@in_processes(2)
def test_a_loss_that_is_not_finite_in_one_process_is_held_in_all(place: Place) -> None:
    for bad in (NAN, float("inf")):
        optimizer = emo_torch.EmoSens([torch.nn.Parameter(torch.ones(2))])
        for loss in (1.0, bad if place.rank == 1 else 2.0, 1.5):
            optimizer.step(loss=loss)
        emotion = optimizer.emotion
        assert (emotion.felt.item(), emotion.held.item()) == (2, 1)
        assert emotion.short.isfinite()
        assert_same_in_all(optimizer.named_memory(), place)


@in_processes(2)
def test_a_copy_averages_over_the_same_processes(place: Place) -> None:
    own = [dist.new_group([rank]) for rank in range(place.size)][place.rank]
    expected = {"all": 0.5, "none": place.rank, "own": place.rank}
    for name, process_group in (("all", None), ("none", False), ("own", own)):
        net = torch.nn.Linear(2, 1)
        optimizer = emo_torch.EmoSens(net.parameters(), process_group=process_group)
        twin = copy.deepcopy(optimizer)
        twin.step(loss=float(place.rank))
        assert twin.emotion.long == expected[name]
        if process_group is own:
            with pytest.raises(TypeError, match="save its state_dict"):
                pickle.dumps(optimizer)
            continue
        read = pickle.loads(pickle.dumps(optimizer))
        read.step(loss=float(place.rank))
        assert read.emotion.long == expected[name]
        # Where it lies is no business of a checkpoint's.
        assert not any("group" in key for key in optimizer.state_dict()["param_groups"][0])


@in_processes(2)
def test_any_optimizer_made_emotional_averages_its_loss(place: Place) -> None:
    net = DistributedDataParallel(Net())
    optimizer = emo_torch.Emotional(torch.optim.AdamW(net.parameters(), lr=1e-2), use_shadow=True)
    train(net, optimizer, range(12), place)
    assert_same_in_all(everything(net, optimizer), place)


# DistributedDataParallel.


@pytest.mark.parametrize("name", MEMBERS)
@in_processes(2)
def test_replicas_with_losses_of_their_own_stay_equal(place: Place, name: str) -> None:
    steps = 40 if name in ("emo_sens", "emo_airy", "emo_cats") else 20
    net = DistributedDataParallel(Net())
    optimizer = emo_torch.create_optimizer(name, net.parameters(), **options_of(name))
    train(net, optimizer, range(steps), place)
    assert_same_in_all(everything(net, optimizer), place)
    # And equal to one process on the full batch.
    twin, theirs = alone(name, steps, **options_of(name))
    assert_close(everything(net.module, optimizer), everything(twin, theirs), 2e-5)


@in_processes(2)
def test_replicas_whose_losses_are_not_averaged_drift_apart(place: Place) -> None:
    net = DistributedDataParallel(Net())
    optimizer = emo_torch.EmoSens(net.parameters(), lr=1e-2, process_group=False)
    train(net, optimizer, range(20), place)
    ours = torch.cat([param.detach().flatten() for param in net.parameters()])
    both = [torch.empty_like(ours) for _ in range(2)]
    dist.all_gather(both, ours)
    assert (both[0] - both[1]).abs().max() > 1e-3


@in_processes(2)
def test_micro_batches_without_sync_make_one_step_of_their_mean(place: Place) -> None:
    net, twin = DistributedDataParallel(Net()), Net()
    ours = emo_torch.EmoSens(net.parameters(), lr=1e-2)
    theirs = emo_torch.EmoSens(twin.parameters(), lr=1e-2, process_group=False)
    for step in range(6):
        inputs, targets = own_share(step, place)
        net.zero_grad()  # Not the optimizer's: a step itself forgets what it was shown.
        pieces = zip(inputs.split([3, 1]), targets.split([3, 1]), strict=True)
        for index, (some, wanted) in enumerate(pieces):
            with net.no_sync() if index == 0 else contextlib.nullcontext():
                loss = (net(some) - wanted).square().mean()
                (loss * len(some) / 4).backward()
            if step % 2:
                ours.observe(loss, weight=len(some))
            else:
                ours.observe(loss * len(some) / 4, reduction="sum")
        ours.step()
        theirs.zero_grad()
        loss = backward(twin, step, None)
        theirs.step(loss=loss)
        torch.testing.assert_close(ours.emotion.short, theirs.emotion.short)
    assert_same_in_all(everything(net, ours), place)
    assert_close(everything(net.module, ours), everything(twin, theirs), 1e-5)


# FSDP2: parameters, gradients and moments lie in parts on several processes.


def sharded(place: Place, dtype: torch.dtype = torch.float32) -> Net:
    net = Net().to(dtype)
    fully_shard(net, mesh=init_device_mesh("cpu", (place.size,)))
    return net


WAYS: dict[str, dict[str, Any]] = {"single": {"foreach": False}, "multi": {"foreach": True}}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MEMBERS)
@in_processes(2)
def test_sharded_parameters_step_as_whole_ones(place: Place, name: str, way: str) -> None:
    # Each mode with each way, and with each kind of rule, at one member at least.
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


@in_processes(2)
def test_a_loss_may_be_sharded_itself(place: Place) -> None:
    del place
    mesh = init_device_mesh("cpu", (2,))
    errors: Any = distribute_tensor(torch.tensor([1.0, 2.0, 6.0]), mesh, [Shard(0)])
    for loss in (errors.sum(), errors.mean()):
        optimizer = emo_torch.EmoSens([torch.nn.Parameter(torch.ones(2))])
        optimizer.step(loss=loss)
        assert optimizer.emotion.long == loss.full_tensor()


@pytest.mark.parametrize("name", ["emo_airy", "ref_adamw_mini_schedule_free"])
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


# Distributed checkpoints.

LAYOUTS = {
    "nested": StateDictOptions(),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
}


def write(net: Any, optimizer: Any, folder: Path, options: StateDictOptions, **how: Any) -> None:
    state = {
        "model": get_model_state_dict(net),
        "optimizer": get_optimizer_state_dict(net, optimizer, options=options),
    }
    save(state, checkpoint_id=folder, **how)


def read(net: Any, optimizer: Any, folder: Path, options: StateDictOptions, **how: Any) -> None:
    state: dict[str, Any] = {
        "model": get_model_state_dict(net),
        "optimizer": get_optimizer_state_dict(net, optimizer, options=options),
    }
    load(state, checkpoint_id=folder, **how)
    set_model_state_dict(net, state["model"])
    set_optimizer_state_dict(net, optimizer, state["optimizer"], options=options)


@pytest.mark.parametrize(
    ("name", "layout"), [*((name, "nested") for name in KINDS), ("emo_sens", "flat"), ("emo_clan", "flat")]
)
@in_processes(2)
def test_a_run_goes_on_from_a_distributed_checkpoint(place: Place, name: str, layout: str) -> None:
    options = options_of(name)
    net, resumed = sharded(place), sharded(place)
    ours, theirs = (
        emo_torch.create_optimizer(name, some.parameters(), **options) for some in (net, resumed)
    )
    train(net, ours, range(6), place)
    write(net, ours, place.folder, LAYOUTS[layout])
    read(resumed, theirs, place.folder, LAYOUTS[layout])
    assert_close(everything(resumed, theirs), everything(net, ours), 0.0)
    for some, optimizer in ((net, ours), (resumed, theirs)):
        train(some, optimizer, range(6, 12), place)
    assert_close(everything(resumed, theirs), everything(net, ours), 0.0)

    # In one process, and from there in two again.
    one = Net()
    alone = emo_torch.create_optimizer(name, one.parameters(), process_group=False, **options)
    read(one, alone, place.folder, LAYOUTS[layout], no_dist=True)
    train(one, alone, range(6, 12), None)
    assert_close(everything(one, alone), everything(net, ours), 2e-5)
    again = sharded(place)
    back = emo_torch.create_optimizer(name, again.parameters(), **options)
    if place.rank == 0:
        write(one, alone, place.folder / "of one", LAYOUTS[layout], no_dist=True)
    dist.barrier()
    read(again, back, place.folder / "of one", LAYOUTS[layout])
    found = everything(again, back)
    assert_same_in_all(found, place)
    assert_close(found, everything(one, alone), 2e-5)


@in_processes(2)
def test_narrow_shards_keep_their_wide_moments_in_a_checkpoint(place: Place) -> None:
    options: dict[str, Any] = {"lr": 1e-3, "rounding": "kahan", "use_shadow": True}
    net, resumed = sharded(place, torch.bfloat16), sharded(place, torch.bfloat16)
    ours, theirs = (emo_torch.EmoSens(some.parameters(), **options) for some in (net, resumed))

    def go_on(some: Net, optimizer: emo_torch.EmoSens, steps: Iterable[int]) -> None:
        for step in steps:
            optimizer.zero_grad()
            inputs, targets = own_share(step, place)
            (some(inputs.bfloat16()) - targets).square().mean().backward()
            optimizer.step(loss=own_loss(step, place))

    go_on(net, ours, range(6))
    write(net, ours, place.folder, LAYOUTS["nested"])
    read(resumed, theirs, place.folder, LAYOUTS["nested"])
    assert theirs.state[resumed.one]["exp_avg"].dtype == torch.float32
    assert theirs.state[resumed.one]["compensation"].dtype == torch.bfloat16
    assert_close(everything(resumed, theirs), everything(net, ours), 0.0)
    go_on(net, ours, range(6, 9))
    go_on(resumed, theirs, range(6, 9))
    assert_close(everything(resumed, theirs), everything(net, ours), 0.0)


@in_processes(2)
def test_a_step_that_makes_state_alone_changes_nothing_and_waits_for_nobody(place: Place) -> None:
    net = sharded(place)
    optimizer = emo_torch.EmoAiry(net.parameters(), lr=0.0, use_shadow=True)
    backward(net, 0, place)
    before = {name: whole(param.detach()).clone() for name, param in net.named_parameters()}
    fresh = optimizer.emotion
    # In one process only: what waited here for the other would wait for ever.
    if place.rank == 0:
        assert optimizer.step() is None
        assert len(optimizer.state) == len(before)
    dist.barrier()
    assert optimizer.emotion == fresh
    for name, param in net.named_parameters():
        assert torch.equal(whole(param.detach()), before[name])
    # As what asks for a state to load into makes it, which a first step does not notice.
    twin = sharded(place)
    other = emo_torch.EmoAiry(twin.parameters(), lr=1e-2, use_shadow=True)
    get_optimizer_state_dict(twin, other)
    optimizer.param_groups[0]["lr"] = 1e-2
    train(net, optimizer, range(4), place)
    train(twin, other, range(4), place)
    assert_close(everything(net, optimizer), everything(twin, other), 0.0)


# ZeroRedundancyOptimizer: each process keeps the state of some parameters, and steps those.


def zero(params: Any, cls: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.distributed.optim compiles in a way of the past.
        from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(params, optimizer_class=cls, **options)


@pytest.mark.parametrize(("name", "as_buckets"), [*((name, False) for name in APART), ("emo_sens", True)])
@in_processes(2)
def test_shared_out_state_steps_as_whole_state(place: Place, name: str, as_buckets: bool) -> None:
    options = options_of(name)
    cls = type(emo_torch.create_optimizer(name, [torch.nn.Parameter(torch.ones(1))]))
    net, twin = (DistributedDataParallel(Net()) for _ in range(2))
    ours = zero(net.parameters(), cls, parameters_as_bucket_view=as_buckets, **options)
    theirs = cls(twin.parameters(), **options)
    for some, optimizer in ((net, ours), (twin, theirs)):
        train(some, optimizer, range(6), place)
        # A schedule writes into the groups that it is shown.
        optimizer.param_groups[0]["lr"] = 5e-3
        train(some, optimizer, range(6, 9), place)
    assert_equal_params(net, twin)
    assert_same_in_all({str(index): param.detach() for index, param in enumerate(net.parameters())}, place)
    assert len(ours.optim.state) < len(theirs.state)

    # One process collects the state, and all go on from it.
    ours.consolidate_state_dict(to=0)
    state = [copy.deepcopy(ours.state_dict()) if place.rank == 0 else None]
    dist.broadcast_object_list(state, src=0)
    if not as_buckets:
        third = DistributedDataParallel(Net())
        third.load_state_dict(net.state_dict())
        resumed = zero(third.parameters(), cls, **options)
        train(third, resumed, range(1), place)
        third.load_state_dict(net.state_dict())
        resumed.load_state_dict(state[0])
        train(third, resumed, range(9, 12), place)
        train(net, ours, range(9, 12), place)
        assert_equal_params(third, net)
        memory = resumed.optim.named_memory()
        for key, tensor in ours.optim.named_memory().items():
            assert torch.equal(tensor, memory[key]), key


def assert_equal_params(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    for (name, param), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(param, other), name


@in_processes(2)
def test_shared_out_state_that_steps_within_a_backward_pass_is_refused(place: Place) -> None:
    del place
    net = DistributedDataParallel(Net())
    with pytest.raises(ValueError, match="no supported functional optimizer"):
        zero(net.parameters(), emo_torch.EmoSens, overlap_with_ddp=True, lr=1e-2)


# Gradient release: an optimizer for each parameter steps within the backward pass.


def release(
    params: Iterable[torch.nn.Parameter], name: str, **options: Any
) -> list[emo_torch.LossOptimizer]:
    """Lets each parameter step, and lets go of its gradient, as soon as that is there."""
    made = {param: emo_torch.create_optimizer(name, [param], **options) for param in params}

    def step(param: Any) -> None:
        made[param].step()
        made[param].zero_grad()

    for param in made:
        param.register_post_accumulate_grad_hook(step)
    return list(made.values())


@pytest.mark.parametrize("name", APART)
def test_steps_within_the_backward_pass_take_a_watched_loss(name: str) -> None:
    net, twin = Net(), Net()
    optimizers = release(net.parameters(), name, **options_of(name))
    whole_optimizer = emo_torch.create_optimizer(name, twin.parameters(), **options_of(name))
    for step in range(6):
        inputs, targets = batch(step)
        loss = (net(inputs) - targets).square().mean()
        for optimizer in optimizers:
            optimizer.watch(loss)
        loss.backward()
        whole_optimizer.zero_grad()
        backward(twin, step, None)
        whole_optimizer.step(loss=loss.detach())
        assert all(param.grad is None for param in net.parameters())
    assert_equal_params(net, twin)
    for optimizer in optimizers:
        for key, tensor in optimizer.named_memory().items():
            assert torch.equal(tensor, whole_optimizer.named_memory()[key]), key


def test_steps_within_the_backward_pass_cannot_wait_for_an_observed_loss() -> None:
    net = Net()
    optimizers = release(net.parameters(), "emo_sens")
    inputs, targets = batch(0)
    loss = (net(inputs) - targets).square().mean()
    with pytest.raises(emo_torch.LossMissingError, match=r"`opt.watch\(loss\)` before the backward pass"):
        loss.backward()
    for optimizer in optimizers:
        optimizer.observe(loss)
    assert_equal_params(net, Net())


def test_the_hooks_of_pytorch_step_within_the_backward_pass() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.distributed.optim compiles in a way of the past.
        from torch.distributed.optim.apply_optimizer_in_backward import (
            _apply_optimizer_in_backward,
            _get_in_backward_optimizers,
        )

    net, twin = Net(), Net()
    _apply_optimizer_in_backward(emo_torch.EmoSens, net.parameters(), {"lr": 1e-2})
    optimizers: list[Any] = _get_in_backward_optimizers(net)
    whole_optimizer = emo_torch.EmoSens(twin.parameters(), lr=1e-2)
    for step in range(6):
        inputs, targets = batch(step)
        loss = (net(inputs) - targets).square().mean()
        for optimizer in optimizers:
            optimizer.watch(loss)
        loss.backward()
        whole_optimizer.zero_grad()
        backward(twin, step, None)
        whole_optimizer.step(loss=loss.detach())
    assert_equal_params(net, twin)


@in_processes(2)
def test_shards_step_within_the_backward_pass(place: Place) -> None:
    net, twin = sharded(place), sharded(place)
    optimizers = release(net.parameters(), "emo_airy", **options_of("emo_airy"))
    whole_optimizer = emo_torch.EmoAiry(twin.parameters(), **options_of("emo_airy"))
    for step in range(4):
        inputs, targets = own_share(step, place)
        loss = (net(inputs) - targets).square().mean()
        for optimizer in optimizers:
            optimizer.watch(loss)
        loss.backward()
        whole_optimizer.zero_grad()
        backward(twin, step, place)
        whole_optimizer.step(loss=loss.detach())
    for param, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(whole(param.detach()), whole(other.detach()))


# torch.compile.


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


# The pages.

DOCS = Path(__file__).parent.parent / "docs"
needs_pages = pytest.mark.skipif(
    not (DOCS / "trainers" / "distributed.md").exists(), reason="THE PAGES LIE IN THE REPOSITORY ALONE"
)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@needs_pages
@in_processes(2)
def test_all_code_of_the_page_runs(place: Place) -> None:
    port = torch.tensor(free_port())
    dist.broadcast(port, src=0)
    dist.destroy_process_group()
    place_in_words = {"RANK": place.rank, "WORLD_SIZE": place.size, "MASTER_PORT": port.item()}
    os.environ.update({name: str(value) for name, value in place_in_words.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    os.chdir(place.folder)
    page = (DOCS / "trainers" / "distributed.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 8
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "distributed.md", "exec"), names)
        if isinstance(names.get("model"), DistributedDataParallel):
            assert_same_in_all(dict(names["model"].named_parameters()), place)
    assert not names["optimizer"].emotion.short.isnan()
