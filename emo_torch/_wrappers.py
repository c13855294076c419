"""Getting through what wraps an optimizer."""

from typing import Any

from emo_torch._emotional import LossOptimizer


def unwrap(optimizer: Any) -> LossOptimizer:
    """Returns the optimizer of this package inside of what wraps it.

    Trainers wrap optimizers in objects of their own that hand on `step` without a loss, and neither
    `watch` nor `observe`: Accelerate's and Lightning's hold the optimizer as `optimizer`,
    `torch.distributed.optim.ZeroRedundancyOptimizer` as `optim`.

    Args:
        optimizer: an optimizer of this package, however deeply wrapped.

    Returns:
        The optimizer itself.

    Raises:
        TypeError: if there is none inside.

    Example:
        >>> import types
        >>> import torch
        >>> import emo_torch
        >>> optimizer = emo_torch.EmoSens([torch.nn.Parameter(torch.ones(2))])
        >>> wrapped = types.SimpleNamespace(optimizer=optimizer)
        >>> emo_torch.unwrap(wrapped).observe(0.5)
    """
    inside = optimizer
    while inside is not None and not isinstance(inside, LossOptimizer):
        inside = getattr(inside, "optimizer", None) or getattr(inside, "optim", None)
    if inside is None:
        raise TypeError(
            "There is no optimizer of emo_torch inside: pass one, or what wraps it as `optimizer`; this "
            f"is {optimizer!r}"
        )
    return inside
