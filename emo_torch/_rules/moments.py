"""Averages: how moments move, and how they are stored."""

import torch
from torch import Tensor

from emo_shared.eight_bit import LARGEST_BESIDE_SQUARE, table_of
from emo_torch._rules import eight_bit


def store(name: str, moment: Tensor, kept: Tensor) -> None:
    """Puts a moment, by its name, into the tensor that it is kept in, rounded to that dtype.

    float16 has a small range: a larger value becomes its largest value, and a square does
    not become 0, by which the first moment would be divided, where it was not.
    """
    if moment is kept:
        return
    if kept.dtype == torch.float16:
        most, least = 65504.0, 2.0**-24
        moment = moment.clamp(-most, most)
        if name.endswith("exp_avg_sq"):
            moment = torch.where(moment > 0.0, moment.clamp(min=least), moment)
    kept.copy_(moment)


def loaded(name: str, state: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Returns a moment of a state in a dtype; the stored tensor itself where the dtype is the same."""
    return decoded(name, state).to(dtype)


def decoded(name: str, state: dict[str, Tensor]) -> Tensor:
    """Returns a moment of a state: the stored tensor, or float32 values of the moment in 8 bits."""
    kept = state[name]
    if kept.dtype != torch.uint8:
        return kept
    return eight_bit.decode(kept, state[eight_bit.scale_name(name)], table_of(name))


def store_in(name: str, moment: Tensor, state: dict[str, Tensor]) -> None:
    """Puts a moment into a state, rounded to the dtype of the stored tensor, or as codes and scales."""
    kept = state[name]
    if kept.dtype != torch.uint8:
        store(name, moment, kept)
        return
    if f"{name}_sq" in state:
        moment = moment.clamp(-LARGEST_BESIDE_SQUARE, LARGEST_BESIDE_SQUARE)
    codes, scale = eight_bit.encode(moment, table_of(name))
    kept.copy_(codes)
    state[eight_bit.scale_name(name)].copy_(scale)


def average(moment: Tensor, value: Tensor, decay: float) -> None:
    """Sets a moment to `decay moment + (1 - decay) value`."""
    moment.mul_(decay).add_(value, alpha=1.0 - decay)


def multi_tensor_average(moments: list[Tensor], values: list[Tensor], decay: float) -> None:
    torch._foreach_mul_(moments, decay)
    torch._foreach_add_(moments, values, alpha=1.0 - decay)


def interpolate(grad: Tensor, exp_avg: Tensor | None, b1: float, b2: float) -> Tensor:
    """Returns `(1 - b1) grad + b1 exp_avg`, and moves the momentum by `b2`."""
    if exp_avg is None:
        return grad * (1.0 - b1)
    mixed = exp_avg.mul(b1).add_(grad, alpha=1.0 - b1)
    average(exp_avg, grad, b2)
    return mixed


def multi_tensor_interpolate(
    grads: list[Tensor], exp_avgs: list[Tensor] | None, b1: float, b2: float
) -> list[Tensor]:
    if exp_avgs is None:
        return list(torch._foreach_mul(grads, 1.0 - b1))
    mixed = list(torch._foreach_mul(exp_avgs, b1))
    torch._foreach_add_(mixed, grads, alpha=1.0 - b1)
    multi_tensor_average(exp_avgs, grads, b2)
    return mixed
