"""The parts of a step of EmoPilot by compiled code, if compiled code can take the parameters."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

from typing import Any

import numpy as np
import torch
from torch import Tensor

from emo_torch._kernels import pilot as compiled
from emo_torch._kernels.memory import StepMemory
from emo_torch._kernels.pilot import CompiledBatch as CompiledBatch
from emo_torch._kernels.plan import GroupTensors, Params
from emo_torch._kernels.streams import KEYS
from emo_torch._pieces.averaged_weights import average_rate
from emo_torch._pieces.ceiling import LEAST_CEILING, step_ceiling
from emo_torch._pieces.emotion import wide_dtype
from emo_torch._pieces.pilot import PilotState
from emo_torch._pieces.pilot_in_place import PilotArrays
from emo_torch._rules.recipe import Group, State
from emo_torch._sharded import sums_of_parts
from emo_torch._step import pilot_ways
from emo_torch._step.pilot_ways import Batch
from emo_torch._step.rounded import keys_of


def take_compiled(
    memory: StepMemory,
    states: dict[Any, State],
    kind: str,
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
        kind: the name of the optimizer's rule.
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
    batches, remaining = compiled.take(kind, carried, grads, own, options)
    # A step by a plan has no new layout to store.
    if layout is None or carried.layout is not layout:
        memory.remember(number, group, states, GroupTensors(carried, grads, own))
    left = ([some[index] for index in remaining] for some in (params, grads, own))
    return batches, GroupTensors(*left)  # type: ignore[arg-type]


def measure_all(
    batches: list[Batch | CompiledBatch], weighs: list[bool]
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns for each batch the products of gradients and first moments, and the mean squares.

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
            counts = torch.tensor([max(param.numel(), 1) for param in batch.params], device="cpu")
            own, mean = sums[:3], sums[3:] / counts.to(sums)
        else:
            found, squares = compiled.measure(batch, weighs=needed)
            own, mean = torch.from_numpy(found), torch.from_numpy(squares).to(wide_dtype(batch.params[0]))
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
        numbers = lengths.to(rate.dtype).contiguous().numpy()
        return torch.from_numpy(compiled.move(batch, numbers, pilot.gate.item(), rate.item()))
    return None


def are_numbers(batches: list[Any], rates: list[Any]) -> bool:
    """Returns whether compiled code moves all parameters, and all learning rates are numbers."""
    if torch.compiler.is_compiling() or not batches:
        return False
    is_compiled = all(isinstance(batch, CompiledBatch) for _, batch in batches)
    return is_compiled and all(isinstance(peak, float) for _, peak in rates)


def move_by_numbers(
    arrays: PilotArrays,
    loss: float,
    batches: list[tuple[int, Any]],
    rates: list[tuple[Any, Any]],
    group: Group,
) -> None:
    """Takes a whole step, for which `are_numbers` is true, with the bits of `PilotedOptimizer._move`.

    Args:
        arrays: the scalars.
        loss: the loss to minimize.
        batches: for each batch the index of its group, and the `CompiledBatch`; at least one.
        rates: for each group the result of `scheduled`.
        group: a group, for the options that all groups share.
    """
    real = arrays.real
    total, means = np.zeros(3, real), []
    for number, batch in batches:
        products, mean_squares = compiled.measure(batch, weighs=rates[number][1] > LEAST_CEILING)
        total += products.astype(real)
        means.append(mean_squares)
    steered = arrays.steer(
        loss,
        total[0],
        limit=group["gate_limit"],
        min_courage=group["min_courage"],
        max_courage=group["max_courage"],
        learning_rate=max(peak for _, peak in rates),
    )
    if steered is None:
        arrays.fields.skipped[()] += 1
        return
    longest, bounds, count = [], 0, 0
    for (number, batch), mean_squares in zip(batches, means, strict=True):
        share, peak = rates[number]
        wide = wide_dtype(batch.params[0])
        ceilings = step_ceiling(torch.from_numpy(mean_squares).to(wide)).numpy()
        kind = ceilings.dtype.type
        bounds, count = bounds + int(np.count_nonzero(ceilings < kind(peak))), count + len(ceilings)
        lengths = kind(steered.courage) * kind(share) * np.minimum(ceilings, kind(peak))
        rate = min(kind(1.0) / (kind(steered.step) + kind(8.0)) * kind(9.0), kind(1.0))
        total += compiled.move(batch, lengths, float(steered.gate), float(rate)).astype(real)
        longest.append(lengths.max().item())
    arrays.keep(steered, total, real(np.max(longest)), real(bounds) / real(count))
