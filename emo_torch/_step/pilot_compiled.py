"""The parts of a step of EmoPilot by compiled code, if compiled code can take the parameters."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

from typing import Any

from torch import Tensor

from emo_torch._kernels import pilot as compiled
from emo_torch._kernels.memory import StepMemory
from emo_torch._kernels.pilot import CompiledBatch as CompiledBatch
from emo_torch._kernels.plan import GroupTensors, Params
from emo_torch._pieces.averaged_weights import average_rate
from emo_torch._pieces.pilot import PilotState
from emo_torch._rules.recipe import Group, State
from emo_torch._step import pilot_ways
from emo_torch._step.pilot_ways import Batch


def take_compiled(
    memory: StepMemory, states: dict[Any, State], number: int, group: Group, tensors: GroupTensors
) -> tuple[list[CompiledBatch], GroupTensors]:
    """Returns the parameters of a group that compiled code moves, and the tensors of the other parameters.

    Args:
        memory: the step memory of the optimizer.
        states: the state of every parameter of the optimizer.
        number: the index of the group.
        group: the group.
        tensors: the parameters of the group that have a gradient, with gradients and states.
    """
    params, grads, own = tensors
    layout = params.layout if isinstance(params, Params) else None
    carried = memory.params(number, params)
    batches, rest = compiled.take(carried, grads, own, group)
    # A step by a plan has no new layout to store.
    if layout is None or carried.layout is not layout:
        memory.remember(number, group, states, GroupTensors(carried, grads, own))
    left = ([some[index] for index in rest] for some in (params, grads, own))
    return batches, GroupTensors(*left)  # type: ignore[arg-type]


def measure(batch: Batch | CompiledBatch) -> tuple[Tensor, Tensor]:
    """Returns the products of gradients and last directions, and the mean square of each parameter."""
    return compiled.measure(batch) if isinstance(batch, CompiledBatch) else pilot_ways.measure(batch)


def step_batch(batch: Batch | CompiledBatch, lengths: Tensor, pilot: PilotState, is_finite: Tensor) -> None:
    """Moves moments, weights and averages of a batch, unless the loss or a gradient is not finite."""
    if isinstance(batch, Batch):
        pilot_ways.step_batch(batch, lengths, pilot, is_finite)
    elif is_finite:
        rate = average_rate(pilot.step, batch.params[0].dtype)
        compiled.move(batch, lengths, pilot.gate.item(), rate.item())
