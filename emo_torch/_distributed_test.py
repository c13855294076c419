"""Many processes, really run: two or four on this machine's CPU, which talk through gloo.

A test marked `@in_processes` runs in each of them at once, with a `Place` that says in which one it is.
The processes start once and are kept; each test has process groups of its own.
"""

import contextlib
import copy
import itertools
import json
import multiprocessing
import os
import pickle
import re
import sys
import tempfile
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
from torch.distributed.checkpoint import load, save
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

MEMBERS = tuple(emo_torch.list_optimizers())
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

        def run(processes: Callable[[int], "Processes"], tmp_path: Path, **given: Any) -> None:
            failures = processes(size).run(test.__name__, tmp_path, given)
            assert not failures, "\n".join(failures)

        run.__name__ = test.__name__
        # pytest reads a signature for what to pass.
        run.__signature__ = _signature(["processes", "tmp_path", *names])  # type: ignore[attr-defined]
        return run

    return decorate


def _signature(names: list[str]) -> Any:
    import inspect

    return inspect.Signature([inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names])


class Processes:
    """Some processes that wait for tests."""

    def __init__(self, size: int) -> None:
        self.size = size
        context = multiprocessing.get_context("spawn")
        pairs = [context.Pipe() for _ in range(size)]
        self.pipes = [mine for mine, _ in pairs]
        self.alive = [
            context.Process(target=_serve, args=(rank, size, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self.alive:
            process.start()

    def run(self, name: str, folder: Path, given: dict[str, Any]) -> list[str]:
        """Runs a test in all of them; returns what went wrong, by process."""
        for pipe in self.pipes:
            pipe.send((name, folder, given))
        failures = []
        for rank, pipe in enumerate(self.pipes):
            try:
                answer = pipe.recv() if pipe.poll(2 * PATIENCE) else "no answer"
            except EOFError:
                answer = "it ended"
            if answer is not None:
                failures.append(f"in process {rank} of {self.size}: {answer}")
        return failures

    def end(self) -> None:
        """Ends them."""
        for process in self.alive:
            process.kill()
            process.join()


def _serve(rank: int, size: int, pipe: Any) -> None:
    """Runs the tests that come through a pipe, until it closes."""
    warnings.simplefilter("error")
    # The words of torch.distributed.checkpoint about itself.
    warnings.filterwarnings("ignore", ".*(TypedStorage|_get_pg_default_device|weights_only).*")
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    while True:
        try:
            name, folder, given = pipe.recv()
        except EOFError:
            return
        place = Place(rank, size, folder)
        answer = None
        try:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/store_of_{name}",
                rank=rank,
                world_size=size,
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
def processes() -> Iterator[Callable[[int], Processes]]:
    made: dict[int, Processes] = {}

    def of(size: int) -> Processes:
        # After a failure they may not be of one mind any more, and one may have ended.
        if size not in made:
            made[size] = Processes(size)
        return made[size]

    yield of
    for some in made.values():
        some.end()


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


def train(
    net: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: Iterable[int],
    place: Place | None,
    *,
    loss_of: Callable[[int, Place | None], float] = own_loss,
) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(net, step, place)
        optimizer.step(loss=loss_of(step, place))  # type: ignore[call-arg]


def options_of(name: str, mode: str = "decoupled", **more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "weight_decay_mode": mode, **more}
    if name == "ref_adamw_mini_schedule_free":
        return {**options, "ref_max_steps": 10}
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
        torch.testing.assert_close(
            tensor,
            theirs[name],
            rtol=bound,
            atol=bound,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
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
    steps = 60 if name in ("emo_sens", "emo_airy", "emo_cats") else 20
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
        ours.zero_grad()
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
