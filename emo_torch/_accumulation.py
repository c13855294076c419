"""The losses of a step that has several, or one that comes at another time than the step."""

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

REDUCTIONS = ("mean", "sum")


class CollectedLosses:
    r"""Losses collected for the next step, as one number.

    .. math:: \text{mean: } \frac{\sum_i w_i L_i}{\sum_i w_i} \qquad \text{sum: } \sum_i w_i L_i

    Attributes:
        loss: their mean or sum, a tensor of shape `[]`; `None` where there are none.
    """

    def __init__(self) -> None:
        self.loss: Tensor | None = None
        self._reduction = "mean"
        self._weight = 0.0

    def check(self, weight: Any, reduction: Any) -> None:
        """Raises an error for a loss that cannot be added like this."""
        if isinstance(weight, bool | Tensor) or not isinstance(weight, Real):
            raise TypeError(f"Invalid weight: {weight!r}; the weight of a loss must be a number")
        if not 0.0 < float(weight) < math.inf:
            raise ValueError(f"Invalid weight: {weight}; the weight of a loss must be above 0 and finite")
        if reduction not in REDUCTIONS:
            known = " or ".join(repr(name) for name in REDUCTIONS)
            raise ValueError(f"Invalid reduction: {reduction!r}; it must be {known}")
        if self.loss is not None and reduction != self._reduction:
            raise ValueError(
                f"The losses of one step are reduced in one way, and those collected so far by "
                f"{self._reduction!r}, not {reduction!r}. Call `discard_observed()` first to forget them."
            )

    def add(self, loss: Tensor, weight: float = 1.0, reduction: str = "mean") -> None:
        """Adds a loss of shape `[]`, without a sync with the device."""
        with torch.no_grad():
            if self.loss is None:
                self.loss = loss.clone() if reduction == "mean" else loss * weight
                self._weight = 0.0
            elif reduction == "mean":
                # In this form equal losses have themselves as their mean, to the last bit.
                share = weight / (self._weight + weight)
                self.loss = self.loss + share * (loss - self.loss)
            else:
                self.loss = self.loss + weight * loss
        self._weight += weight
        self._reduction = reduction

    def discard(self) -> None:
        """Forgets them."""
        self.loss = None
