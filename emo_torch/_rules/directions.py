"""The directions that EmoPilot's scalars steer: Adam's moments, or factors with a momentum."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

import math

import torch
from torch import Tensor

from emo_torch._pieces.shadow_effect import row_and_column_means
from emo_torch._pieces.sums import dot
from emo_torch._rules.recipe import State
from emo_torch._sharded import foreach_takes, local_part, mean, redistribute_like, sums_of_parts

LEAST_SQUARE = 1e-30
"""Adafactor's number beside the squares: rows and columns of zeros have a quotient, too."""

Turned = tuple[list[Tensor], list[State]]
"""The direction and the moved moments of each parameter, in new tensors."""


def turn_by_adam(
    grads: list[Tensor], moments: list[State], steps: Tensor, *, b1: float, b2: float, eps: float
) -> Turned:
    r"""Turns gradients into Adam's direction.

    .. math::
        m \leftarrow m + (1-b_1)(g - m), \quad v \leftarrow b_2 v + (1-b_2)\,g^2, \qquad
        u = \frac{m / (1 - b_1^t)}{\sqrt{v / (1 - b_2^t)} + \epsilon}

    Args:
        grads: the gradients of one device and dtype, the dtype of the computation.
        moments: for each parameter `"exp_avg"` (m) and `"exp_avg_sq"` (v), in the same dtype; not moved.
        steps: t, the number of steps of each parameter, this one included, shape `[n]`.
        b1: decay rate of the first moment, in [0, 1).
        b2: decay rate of the second moment, in [0, 1).
        eps: the number added to the root, >= 0.
    """
    firsts = _lerp([own["exp_avg"] for own in moments], grads, 1.0 - b1)
    seconds = list(torch._foreach_mul([own["exp_avg_sq"] for own in moments], b2))
    torch._foreach_addcmul_(seconds, grads, grads, value=1.0 - b2)
    roots = _roots(seconds, steps, b2, eps)
    directions = _corrected(firsts, steps, b1)
    torch._foreach_div_(directions, roots)
    pairs = zip(firsts, seconds, strict=True)
    return directions, [{"exp_avg": first, "exp_avg_sq": second} for first, second in pairs]


def turn_by_factors(
    grads: list[Tensor], moments: list[State], steps: Tensor, *, b1: float, b2: float, eps: float
) -> Turned:
    r"""Turns gradients into the momentum of Adafactor's direction.

    .. math::
        R &\leftarrow b_2 R + (1-b_2) \operatorname{mean}_{\text{all but first}} g^2, \quad
            C \leftarrow b_2 C + (1-b_2) \operatorname{mean}_{\text{first}} g^2, \quad
            v = \frac{R\,C}{\operatorname{mean} R} \\
        u &= \frac{g}{\sqrt{v / (1 - b_2^t)} + \epsilon}, \qquad
            m \leftarrow m + (1-b_1)\Bigl(\frac{u}{\max(1, \mathrm{RMS}(u))} - m\Bigr)

    The direction is :math:`m / (1 - b_1^t)`. The means have 1e-30 added. With 0 or 1 dimensions v is the
    running average of g^2.

    Args:
        grads: the gradients of one device and dtype, the dtype of the computation.
        moments: for each parameter `"exp_avg"` (m), and `"row"` (R) and `"column"` (C) or `"exp_avg_sq"`
            (v), in the same dtype; not moved.
        steps: t, the number of steps of each parameter, this one included, shape `[n]`.
        b1: decay rate of the momentum, in [0, 1).
        b2: decay rate of the second moment, in [0, 1).
        eps: the number added to the root, >= 0.
    """
    squares = list(torch._foreach_mul(grads, grads))
    moved = [_move_squares(square, own, b2) for square, own in zip(squares, moments, strict=True)]
    estimates = [_estimate(own, grad) for own, grad in zip(moved, grads, strict=True)]
    updates = list(torch._foreach_div(grads, _roots(estimates, steps, b2, eps)))
    flat = [local_part(update).flatten() for update in updates]
    sums = sums_of_parts([dot(each, each).reshape(1) for each in flat], updates)
    counts = torch.tensor([max(update.numel(), 1) for update in updates], device=steps.device)
    sizes = (torch.cat(sums) / counts).sqrt_()
    torch._foreach_div_(updates, list(sizes.clamp_(min=1.0).unbind()))
    firsts = _lerp([own["exp_avg"] for own in moments], updates, 1.0 - b1)
    for own, first in zip(moved, firsts, strict=True):
        own["exp_avg"] = first
    return _corrected(firsts, steps, b1), moved


def correction(rate: float, steps: Tensor, dtype: torch.dtype) -> Tensor:
    r"""Returns :math:`1 - b^t`; computed directly, it loses 5 digits of float32 if b is near 1."""
    exponent = math.inf if rate == 0.0 else -math.log(rate)
    return -torch.expm1(-exponent * steps.to(dtype))


def _corrected(moments: list[Tensor], steps: Tensor, rate: float) -> list[Tensor]:
    """Returns moments corrected for their start at 0."""
    return list(torch._foreach_div(moments, list(correction(rate, steps, moments[0].dtype).unbind())))


def _roots(seconds: list[Tensor], steps: Tensor, rate: float, eps: float) -> list[Tensor]:
    roots = _corrected(seconds, steps, rate)
    torch._foreach_sqrt_(roots)
    torch._foreach_add_(roots, eps)
    return roots


def _lerp(starts: list[Tensor], ends: list[Tensor], weight: float | Tensor) -> list[Tensor]:
    if isinstance(weight, Tensor):
        return [start.lerp(end, weight.to(start)) for start, end in zip(starts, ends, strict=True)]
    if foreach_takes(ends):
        return list(torch._foreach_lerp(starts, ends, weight))
    return [start.lerp(end, weight) for start, end in zip(starts, ends, strict=True)]


def _move_squares(square: Tensor, own: State, rate: float) -> State:
    """Returns the averages of the squares of one gradient: of rows and columns, or of the elements."""
    news = {"exp_avg_sq": square}
    if square.ndim >= 2:
        if square.numel() == 0:  # A mean over nothing is NaN: an empty tensor's factors rest.
            return {name: own[name] for name in ("row", "column")}
        row, column = row_and_column_means(square)
        news = {"row": row + LEAST_SQUARE, "column": column + LEAST_SQUARE}
    # A rate that is a tensor of float64 makes float64 of tensors of shape [].
    return {name: (own[name] * rate + new * (1.0 - rate)).to(new.dtype) for name, new in news.items()}


def _estimate(own: State, grad: Tensor) -> Tensor:
    """Returns the estimate of the second moment of each element of a gradient."""
    if grad.ndim < 2:
        return own["exp_avg_sq"]
    # Divided first: the product of two small factors would be 0.
    row = own["row"] / mean(own["row"], tuple(range(grad.ndim)))
    return redistribute_like(row * own["column"], grad)
