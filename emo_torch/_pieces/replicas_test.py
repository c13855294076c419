"""The loss of replicas, as far as one process can tell; for several processes see `_distributed`."""

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import emo_torch
from emo_torch._pieces.replicas import Replicas


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Any]:
    where = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_without_other_processes_the_loss_is_what_it_was() -> None:
    loss = torch.tensor(2.0)
    for process_group in (None, False):
        assert emo_torch.average_over_replicas(loss, process_group) is loss


def test_a_process_alone_averages_with_nobody(alone: Any) -> None:
    loss = torch.tensor(2.0)
    assert emo_torch.average_over_replicas(loss, alone) is loss
    assert emo_torch.average_over_replicas(loss) is loss


@pytest.mark.parametrize("name", emo_torch.list_optimizers())
def test_every_member_takes_the_processes(name: str, alone: Any) -> None:
    for process_group in (None, False, alone):
        param = torch.nn.Parameter(torch.ones(2, 2))
        optimizer = emo_torch.create_optimizer(name, [param], process_group=process_group)
        param.grad = torch.ones(2, 2)
        optimizer.step(loss=1.0)
        assert optimizer._replicas.process_group is process_group


@pytest.mark.parametrize("process_group", [True, 0, "world", [0, 1], -100])
def test_what_is_no_group_is_refused(process_group: Any) -> None:
    with pytest.raises(TypeError, match=r"Invalid process_group: .*belongs to"):
        emo_torch.EmoSens([torch.nn.Parameter(torch.ones(2))], process_group=process_group)
    with pytest.raises(TypeError, match="Invalid process_group"):
        emo_torch.Emotional(
            torch.optim.SGD([torch.nn.Parameter(torch.ones(2))]), process_group=process_group
        )


def test_a_copy_averages_over_the_same_processes_and_a_pickle_says_that_it_cannot(alone: Any) -> None:
    params = [torch.nn.Parameter(torch.ones(2))]
    optimizer = emo_torch.EmoSens(params, process_group=alone)
    assert copy.deepcopy(optimizer)._replicas.process_group is alone
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(optimizer)
    for process_group in (None, False):
        plain = emo_torch.EmoSens(params, process_group=process_group)
        assert pickle.loads(pickle.dumps(plain))._replicas.process_group is process_group


def test_every_loss_goes_through_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replicas, "average", lambda self, loss: loss + 1.0)  # noqa: ARG005
    optimizer = emo_torch.EmoSens([torch.nn.Parameter(torch.ones(2))])
    optimizer.step(loss=1.0)
    optimizer.observe(1.0)
    optimizer.step()
    optimizer.step(lambda: 1.0)
    assert (int(optimizer.emotion.felt), float(optimizer.emotion.long)) == (3, 2.0)
    ref = emo_torch.RefAdamWMiniScheduleFree([torch.nn.Parameter(torch.ones(2))])
    ref.step(loss=1.0, val_loss=4.0)
    assert (float(ref.divergence.previous), float(ref.divergence.val_previous)) == (2.0, 5.0)
