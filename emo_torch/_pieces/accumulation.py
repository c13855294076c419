"""The losses of a step with several losses, or with a loss that is known at another time than the step."""

import math
import weakref
from collections import Counter
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from emo_torch._checks.errors import HALF_HEARD, LossMissingError

REDUCTIONS = ("mean", "sum")


class Watched:
    """A watched loss: it counts as soon as a backward pass reaches it.

    Attributes:
        loss: its value, shape `[]`.
        weight: its weight among the losses of one step, above 0.
        reduction: how several losses become one, "mean" or "sum".
        watched_at: when it was watched, in the order of events of its optimizer.
    """

    def __init__(self, loss: Tensor, weight: float, reduction: str, watched_at: int) -> None:
        self.loss, self.weight, self.reduction = loss, weight, reduction
        self.watched_at = watched_at


class CollectedLosses:
    r"""Losses collected for the next step, as one number.

    .. math:: \text{mean: } \frac{\sum_i w_i L_i}{\sum_i w_i} \qquad \text{sum: } \sum_i w_i L_i

    Attributes:
        loss: their mean or sum, a tensor of shape `[]`; or `None`.
    """

    def __init__(self) -> None:
        self.loss: Tensor | None = None
        self._reduction = "mean"
        self._weight = 0.0
        self._clock = 0
        self._alive: weakref.WeakSet[Watched] = weakref.WeakSet()
        # Backward passes that count for the next step, and backward passes that `reset` took back, each
        # with its time. Only passes during which another watched loss was still alive are recorded.
        self._passes: list[tuple[int, Watched]] = []
        self._taken_back: list[tuple[int, Watched]] = []
        # For `listen`: the sum of unscaled roots of backward passes, and the sum of roots of which only the
        # step can tell whether a gradient scaler has scaled them.
        self.heard_sum: Tensor | None = None
        self.raw_sum: Tensor | None = None
        self.mark: tuple[int, int] | None = None
        """The identity of the first gradient after the last pass, and how often it was changed."""
        self.doubts: dict[int, str] = {}
        """Why the sums may be a part of the loss only."""
        self.seen: Counter[str] = Counter()
        """The backward passes that `listen` has seen since the last step, by kind."""

    def heard(self) -> Tensor | None:
        """Returns the sum of the roots that `listen` heard, which counts if no other loss was collected.

        Raises:
            LossMissingError: if that sum may be a part of the loss only.
        """
        if self.doubts:
            raise LossMissingError(HALF_HEARD.format(why="; ".join(dict.fromkeys(self.doubts.values()))))
        if self.raw_sum is None or self.heard_sum is None:
            return self.heard_sum if self.raw_sum is None else self.raw_sum
        return self.heard_sum + self.raw_sum

    def forget_heard(self) -> None:
        """Forgets the sums of roots."""
        self.heard_sum = self.raw_sum = None

    def check(self, weight: Any, reduction: Any) -> None:
        """Raises an error for an invalid weight or reduction of a loss."""
        if isinstance(weight, bool | Tensor) or not isinstance(weight, Real):
            raise TypeError(f"Invalid weight: {weight!r}; the weight of a loss must be a number")
        try:
            size = float(weight)
        except OverflowError:
            size = math.inf
        if not 0.0 < size < math.inf:
            raise ValueError(f"Invalid weight: {weight}; the weight of a loss must be above 0 and finite")
        if reduction not in REDUCTIONS:
            known = " or ".join(repr(name) for name in REDUCTIONS)
            raise ValueError(f"Invalid reduction: {reduction!r}; it must be {known}")
        if self.loss is not None and reduction != self._reduction:
            raise ValueError(
                "All losses of one step must have the same reduction: the collected losses have "
                f"{self._reduction!r}, and this loss has {reduction!r}. Pass the same reduction, or call "
                "`discard_observed()` first to discard the collected losses."
            )

    def add(self, loss: Tensor, weight: float = 1.0, reduction: str = "mean") -> None:
        """Adds a loss of shape `[]`, without a sync with the device."""
        with torch.no_grad():
            if self.loss is None:
                self.loss = loss.clone() if reduction == "mean" else loss * weight
                self._weight = 0.0
            elif reduction == "mean":
                # In this form the mean of equal losses is the same number, to the last bit.
                share = weight / (self._weight + weight)
                self.loss = self.loss + share * (loss - self.loss)
            else:
                self.loss = self.loss + weight * loss
        self._weight += weight
        self._reduction = reduction

    def watch(self, loss: Tensor, weight: float, reduction: str) -> Watched:
        """Returns a loss to give to `add_watched` when a backward pass reaches it."""
        self._clock += 1
        watched = Watched(loss, weight, reduction, self._clock)
        self._alive.add(watched)
        return watched

    def add_watched(self, watched: Watched) -> None:
        """Adds a watched loss, which a backward pass has reached.

        A loss that was watched before an earlier backward pass belongs to the same step as the loss of
        that pass: if `reset` took that pass back in between, the pass counts again.
        """
        back, self._taken_back = self._taken_back, []
        for time, other in back:
            is_same_step = watched.watched_at < time and other.reduction == watched.reduction
            if is_same_step and other is not watched:
                self._count(time, other)
        self._clock += 1
        self._count(self._clock, watched)

    def _count(self, time: int, watched: Watched) -> None:
        self.check(watched.weight, watched.reduction)
        self.add(watched.loss, watched.weight, watched.reduction)
        if any(other is not watched for other in self._alive):
            self._passes.append((time, watched))

    def reset(self) -> None:
        """Forgets the losses, as the gradients are reset; `add_watched` can count passes again."""
        self._taken_back.extend(self._passes)
        self.loss, self._passes = None, []
        self.forget_heard()

    def discard(self) -> None:
        """Discards the collected losses."""
        self.loss, self._passes, self._taken_back = None, [], []
        self.heard_sum = self.raw_sum = None
        if self.seen or self.doubts:
            self.seen, self.doubts = Counter(), {}
