"""The parts of a step that EmoPilot steers: batches of parameters, their products, and the step itself."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

from typing import NamedTuple

import torch
from torch import Tensor

from emo_torch._pieces.averaged_weights import average_rate
from emo_torch._pieces.emotion import wide_dtype
from emo_torch._pieces.pilot import PilotState
from emo_torch._pieces.sums import dot
from emo_torch._rules.moments import store
from emo_torch._rules.recipe import Group, Rule, State
from emo_torch._sharded import local_part


class Batch(NamedTuple):
    """Parameters of one group, device, dtype and placement, as lists of the same length.

    Attributes:
        group: the parameter group.
        rule: the rule of the optimizer, with a `turn`.
        params: the parameters.
        states: their states.
        weights: the parameters in the dtype of the computation.
        grads: the gradients in the dtype of the computation, pointing uphill, with "l2" decay added.
        moments: the moments of the rule by name, in the dtype of the computation.
        steps: the number of steps that each parameter took, shape `[n]`.
    """

    group: Group
    rule: Rule
    params: list[Tensor]
    states: list[State]
    weights: list[Tensor]
    grads: list[Tensor]
    moments: list[State]
    steps: Tensor


def batch_of(
    group: Group, rule: Rule, params: list[Tensor], grads: list[Tensor], states: list[State]
) -> Batch:
    """Returns a batch of parameters with everything in the dtype of the computation."""
    dtype = wide_dtype(params[0])
    weights = [param.to(dtype) for param in params]
    grads = [grad.to(dtype) for grad in grads]
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    if group["weight_decay_mode"] == "l2":
        grads = list(torch._foreach_add(grads, weights, alpha=group["weight_decay"]))
    names = [rule.moments(param.ndim) for param in params]
    moments = [
        {name: state[name].to(dtype) for name in own} for own, state in zip(names, states, strict=True)
    ]
    steps = torch.stack([state["step"].to(params[0].device) for state in states])
    return Batch(group, rule, params, states, weights, grads, moments, steps)


def measure(batch: Batch, *, weighs: bool) -> Tensor:
    """Returns sums over this process's parts of the parameters, shape `[3 + n]`.

    The sums are the three products of gradients and first moments (see `with_agreement`), and the squares
    of each parameter.

    Args:
        batch: the parameters.
        weighs: whether the squares are needed; otherwise they are 0.
    """
    grads, firsts, weights = (
        [local_part(each).flatten() for each in tensors]
        for tensors in (batch.grads, [own["exp_avg"] for own in batch.moments], batch.weights)
    )
    pairs = [(grads, grads), (grads, firsts), (firsts, firsts), (weights, weights)]
    sums = [
        torch.stack([dot(a, b) for a, b in zip(left, right, strict=True)])
        for left, right in pairs[: 3 + weighs]
    ]
    squares = sums[3] if weighs else torch.zeros_like(sums[0])
    return torch.cat([torch.stack([each.sum() for each in sums[:3]]), squares])


def scheduled(group: Group) -> tuple[float | Tensor, float | Tensor]:
    """Returns the learning rate as a share of the largest learning rate so far, and the largest rate."""
    lr, peak = group["lr"], group["peak_lr"]
    if isinstance(lr, Tensor) or isinstance(peak, Tensor):
        lr = torch.as_tensor(lr).reshape(())
        lr = torch.where(lr.isfinite(), lr, 0.0)  # A step with another one is skipped.
        peak = torch.maximum(lr, torch.as_tensor(peak, dtype=lr.dtype, device=lr.device))
        return torch.where(peak > 0.0, lr / torch.where(peak > 0.0, peak, 1.0), 0.0), peak
    peak = max(float(lr), float(peak))
    return (float(lr) / peak if peak > 0.0 else 0.0), peak


def largest(rates: list[float | Tensor]) -> float | Tensor:
    """Returns the largest learning rate: a number if all of the learning rates are numbers."""
    most = rates[0]
    for rate in rates[1:]:
        if isinstance(most, Tensor) or isinstance(rate, Tensor):
            pair = [torch.as_tensor(each).reshape(()) for each in (most, rate)]
            place = next(each for each in (most, rate) if isinstance(each, Tensor))
            most = torch.maximum(*(each.to(place) for each in pair))
        else:
            most = max(most, rate)
    return most


def step_batch(batch: Batch, lengths: Tensor, pilot: PilotState, is_finite: Tensor) -> None:
    """Moves moments, weights and averages of a batch in the dtype of the computation."""
    group, weights = batch.group, batch.weights
    dtype, device = weights[0].dtype, lengths.device
    finite = is_finite.to(device)
    grads = torch._foreach_mul(batch.grads, pilot.gate.to(device=device, dtype=dtype))
    steps = batch.steps + 1.0
    assert batch.rule.turn is not None
    numbers = batch.rule.numbers(group)
    changes, moved_moments = batch.rule.turn(grads, batch.moments, steps, **numbers)
    lengths = lengths.to(dtype)
    torch._foreach_mul_(changes, list(lengths.unbind()))
    if group["weight_decay_mode"] == "decoupled":
        shares = list((lengths * group["weight_decay"]).unbind())
        torch._foreach_add_(changes, torch._foreach_mul(weights, shares))
    if group["weight_decay_mode"] == "absolute":
        torch._foreach_add_(changes, torch._foreach_mul(weights, group["weight_decay"]))
    moved = torch._foreach_sub(weights, changes)
    for index, state in enumerate(batch.states):
        weight = weights[index]
        for name, old in batch.moments[index].items():
            # All but the first moment are averages of squares.
            kind = name if name == "exp_avg" else "exp_avg_sq"
            store(kind, torch.where(finite, moved_moments[index][name], old), state[name])
        state["step"].copy_(torch.where(finite, steps[index], batch.steps[index]))
        after = torch.where(finite, moved[index], weight)
        if group["average"]:
            average = state["average"]
            rate = average_rate(pilot.step.to(device), average.dtype)
            rate = torch.where(finite, rate, torch.zeros_like(rate))
            average.add_((after.to(average.dtype) - average) * rate)
        if weight is batch.params[index]:
            weight.copy_(after)
        else:
            weights[index] = after
