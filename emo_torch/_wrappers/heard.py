"""The sums of roots of backward passes that an optimizer has heard since its last step."""

from typing import Any

import torch
from torch import Tensor

from emo_torch._step.loss_optimizer import LossOptimizer
from emo_torch._wrappers.reach import has_no_gradients, were_zeroed

Values = dict[tuple[torch.dtype, torch.device, int], tuple[Tensor, bool]]
"""The value of one root for each kind of optimizer, and whether no gradient scaler can have scaled it."""


def hear(
    optimizer: LossOptimizer, root: Tensor, weight: Tensor | None, scaler: Any, values: Values
) -> None:
    """Adds a root to the losses that an optimizer has heard since its last step."""
    collected, number = optimizer._collected, optimizer._memory.number
    kind = (number.dtype, number.device, id(scaler))
    if kind not in values:
        values[kind] = _value(optimizer, root, weight, scaler)
    value, is_unscaled = values[kind]
    name = "heard_sum" if is_unscaled else "raw_sum"
    known = getattr(collected, name)
    # A copy: the root belongs to the caller, who may change it in place.
    setattr(collected, name, value.clone() if known is None else known + value)
    if collected.doubts:
        collected.doubts.pop(getattr(root, "_emo_asked", -1), None)


def _value(
    optimizer: LossOptimizer, root: Tensor, weight: Tensor | None, scaler: Any
) -> tuple[Tensor, bool]:
    before, version = getattr(root, "_emo_unscaled", (None, None))
    if before is not None and root._version != version:
        before = None  # A trainer has changed the scaled loss in place.
    with torch.no_grad():
        value = root.detach() if before is None else before
        if weight is not None:
            value = value * weight.detach()
        value = optimizer._checked_loss(value)
        if before is None and scaler is not None:
            value = unscaled(value, scaler)
    return value, not (before is None and scaler is None)


def unscaled(value: Tensor, scaler: Any) -> Tensor:
    """Returns a scaled loss divided by the scale of its gradient scaler."""
    # `scale` of a tensor leaves the scale on the device.
    return value / scaler.scale(torch.ones_like(value))  # type: ignore[no-any-return]


def is_emptied(optimizer: LossOptimizer) -> bool:
    """Returns whether the gradients of the roots that an optimizer has heard were taken away."""
    heard, raw = sums_of(optimizer)
    if heard is None and raw is None:
        return False
    return has_no_gradients(optimizer) or were_zeroed(optimizer, optimizer._collected.mark)


def sums_of(optimizer: LossOptimizer) -> tuple[Tensor | None, Tensor | None]:
    """Returns the sum of unscaled roots, and the sum of roots that a gradient scaler may have scaled."""
    return optimizer._collected.heard_sum, optimizer._collected.raw_sum
