"""The parts of a step of EmoPilot by compiled code, if compiled code can take the parameters."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

from typing import Any

import torch
from torch import Tensor

from emo_torch._kernels import pilot as compiled
from emo_torch._kernels.memory import StepMemory
from emo_torch._kernels.pilot import CompiledBatch as CompiledBatch
from emo_torch._kernels.plan import GroupTensors, Params
from emo_torch._kernels.streams import KEYS
from emo_torch._pieces.averaged_weights import average_rate
from emo_torch._pieces.emotion import wide_dtype
from emo_torch._pieces.pilot import PilotState
from emo_torch._rules.recipe import Group, State
from emo_torch._sharded import sums_of_parts
from emo_torch._step import pilot_ways
from emo_torch._step.pilot_ways import Batch
from emo_torch._step.rounded import keys_of


def take_compiled(
    memory: StepMemory,
    states: dict[Any, State],
    number: int,
    group: Group,
    tensors: GroupTensors,
    *,
    before: int,
    steps: Tensor,
) -> tuple[list[CompiledBatch], GroupTensors]:
    """Returns the parameters of a group that compiled code moves, and the tensors of the other parameters.

    Args:
        memory: the step memory of the optimizer.
        states: the state of every parameter of the optimizer.
        number: the index of the group.
        group: the group.
        tensors: the parameters of the group that have a gradient, with gradients and states.
        before: the number of parameters in the groups before this one.
        steps: the number of this step, an integer tensor of shape `[]`.
    """
    params, grads, own = tensors
    layout = params.layout if isinstance(params, Params) else None
    carried = memory.params(number, params)
    options = group
    if group["rounding"] != "nearest":
        options = {**group, KEYS: keys_of(params, group, before=before, steps=steps)}
    batches, rest = compiled.take(carried, grads, own, options)
    # A step by a plan has no new layout to store.
    if layout is None or carried.layout is not layout:
        memory.remember(number, group, states, GroupTensors(carried, grads, own))
    left = ([some[index] for index in rest] for some in (params, grads, own))
    return batches, GroupTensors(*left)  # type: ignore[arg-type]


def measure_all(
    batches: list[Batch | CompiledBatch], weighs: list[bool]
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns for each batch the products of gradients and last directions, and the mean squares.

    The products have shape `[3]`; there is a mean square for each parameter. All sharded parameters of a
    mesh take one reduction together. Of the products of a compiled batch, only the first one is known
    before the step; `step_batch` returns the others.

    Args:
        batches: the batches.
        weighs: for each batch, whether the mean squares are needed; otherwise they are 0.
    """
    products, means = [], []
    pairs = list(zip(batches, weighs, strict=True))
    readable = [(batch, needed) for batch, needed in pairs if isinstance(batch, Batch)]
    local = [pilot_ways.measure(batch, weighs=needed) for batch, needed in readable]
    summed = iter(sums_of_parts(local, [batch.params[0] for batch, _ in readable]))
    for batch, needed in pairs:
        if isinstance(batch, Batch):
            sums = next(summed)
            counts = torch.tensor([max(param.numel(), 1) for param in batch.params])
            own, mean = sums[:3], sums[3:] / counts.to(sums)
        else:
            own, mean = compiled.measure(batch, weighs=needed)
        products.append(own)
        means.append(mean)
    return products, means


def step_batch(
    batch: Batch | CompiledBatch, lengths: Tensor, pilot: PilotState, is_finite: Tensor
) -> Tensor | None:
    """Moves moments, weights and averages of a batch, unless the loss or a gradient is not finite.

    Returns the products that `measure_all` has not returned, shape `[3]`; `None` if there are none.
    """
    if isinstance(batch, Batch):
        pilot_ways.step_batch(batch, lengths, pilot, is_finite)
    elif is_finite:
        rate = average_rate(pilot.step, wide_dtype(batch.params[0]))
        return compiled.move(batch, lengths, pilot.gate.item(), rate.item())
    return None
