"""Getting through what wraps an optimizer."""

from collections.abc import Iterable
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
    inside = _innermost(optimizer)
    if not isinstance(inside, LossOptimizer):
        raise TypeError(
            "There is no optimizer of emo_torch inside: pass one, or what wraps it as `optimizer`; this "
            f"is {optimizer!r}"
        )
    return inside


def loss_optimizers(optimizers: Iterable[Any]) -> list[LossOptimizer]:
    """Returns those optimizers of this package that are among others, or inside of what wraps them."""
    insides = (_innermost(optimizer) for optimizer in optimizers)
    return [inside for inside in insides if isinstance(inside, LossOptimizer)]


def _innermost(optimizer: Any) -> Any:
    # To the end: Lightning's wrapper is an instance of the class of what it wraps.
    while True:
        inside = getattr(optimizer, "optimizer", None) or getattr(optimizer, "optim", None)
        if inside is None:
            return optimizer
        optimizer = inside
