"""ZeroRedundancyOptimizer: each process keeps the state of some parameters, and steps these parameters."""

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import emo_torch
from emo_torch._distributed.processes_test import Place, in_processes
from emo_torch._distributed.training_test import (
    APART,
    Net,
    assert_equal_params,
    assert_same_in_all,
    options_of,
    train,
)


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


@in_processes(2)
def test_shared_out_state_that_steps_within_a_backward_pass_is_refused(place: Place) -> None:
    del place
    net = DistributedDataParallel(Net())
    with pytest.raises(ValueError, match="no supported functional optimizer"):
        zero(net.parameters(), emo_torch.EmoSens, overlap_with_ddp=True, lr=1e-2)
