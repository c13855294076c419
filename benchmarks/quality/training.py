"""One run of a task with one optimizer, evaluated with averaged weights where the optimizer has them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import emo_torch
from benchmarks.quality.tasks import Task


class Contender(NamedTuple):
    """An optimizer to be measured.

    Attributes:
        name: its name in results.
        title: its name for readers.
        default: its default learning rate, which is among the rates of every plan.
        make: from parameters and a learning rate to the optimizer.
        is_averaged: whether `torch.optim.swa_utils` averages the weights beside it.
    """

    name: str
    title: str
    default: float
    make: Callable[..., torch.optim.Optimizer]
    is_averaged: bool = False


CONTENDERS = {
    each.name: each
    for each in (
        Contender("emo_pilot", "EmoPilot", 1e-2, emo_torch.EmoPilot),
        Contender("adamw", "AdamW", 1e-3, torch.optim.AdamW),
        Contender("adamw_average", "AdamW + average", 1e-3, torch.optim.AdamW, is_averaged=True),
        Contender("emo_sens", "EmoSens", 1e-3, emo_torch.EmoSens),
        Contender("emo_airy", "EmoAiry", 1e-3, emo_torch.EmoAiry),
        Contender("emo_cats", "EmoCats", 1e-3, emo_torch.EmoCats),
    )
}


def _polynomial(average: torch.Tensor, param: torch.Tensor, count: Any) -> torch.Tensor:
    # The window of EmoPilot, so that the two differ in their steps alone.
    return average + min(1.0, 9.0 / (float(count) + 9.0)) * (param - average)


def train(task: Task, contender: Contender, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """Trains once.

    Args:
        task: the task.
        contender: the optimizer.
        rate: its learning rate, > 0.
        seed: of the first weights and of the batches.
        steps: how many steps to take, > 0.

    Returns:
        `loss`, the loss on the test data; `None` where the training diverged.
    """
    network = task.network(seed)
    params = [param for param in network.parameters() if param.requires_grad]
    optimizer: Any = contender.make(params, lr=rate)
    reads_loss = isinstance(optimizer, emo_torch.LossOptimizer)
    averaged = (
        AveragedModel(network, avg_fn=_polynomial, use_buffers=True) if contender.is_averaged else None
    )
    buffers = emo_torch.AveragedBuffers(network)
    batches = task.batches(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = task.loss_of(network, next(batches))
        if not math.isfinite(loss.item()):
            return {"loss": None}
        loss.backward()
        optimizer.step(**({"loss": loss.detach()} if reads_loss else {}))
        if averaged is not None:
            averaged.update_parameters(network)
        if isinstance(optimizer, emo_torch.EmoPilot):
            buffers.update()
    if isinstance(optimizer, emo_torch.EmoPilot):
        optimizer.eval()
        buffers.eval()
    return {"loss": _evaluate(task, network if averaged is None else averaged.module)}


@torch.no_grad()
def _evaluate(task: Task, network: nn.Module) -> float | None:
    network.eval()
    loss = float(task.loss_of(network, task.test()))
    return loss if math.isfinite(loss) else None
