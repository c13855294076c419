"""The mean of losses over processes, and replicas of DistributedDataParallel."""

import contextlib
import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import emo_torch
from emo_torch._distributed.processes_test import Place, in_processes
from emo_torch._distributed.training_test import (
    MEMBERS,
    NAN,
    Net,
    alone,
    assert_close,
    assert_same_in_all,
    backward,
    everything,
    options_of,
    own_share,
    train,
)


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
        net.zero_grad()  # Not the optimizer's `zero_grad`: a step itself discards its losses.
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
