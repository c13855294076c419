"""The record of a training, the same for both frameworks."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Step(NamedTuple):
    """What one step leaves behind, as arrays of its framework: nobody waits for them yet.

    Attributes:
        loss: the loss before the step, shape `[]`.
        scalar: the emotion scalar, shape `[]`.
        step_scale: what the step was multiplied by, shape `[]`: the step scale of an emotion, emoDrive of
            v3.6.1, the pulse of the third generation, or the courage of EmoPilot.
        shadow_ratio: how far the step pulled the weights to their shadow, shape `[]`.
        weights: all weights after the step, in PyTorch's order, shape `[weights]`.
    """

    loss: Any
    scalar: Any
    step_scale: Any
    shadow_ratio: Any
    weights: Any


class History(NamedTuple):
    """The steps of one or more epochs, in NumPy.

    Attributes:
        loss: shape `[steps]`.
        scalar: shape `[steps]`.
        step_scale: shape `[steps]`.
        shadow_ratio: shape `[steps]`.
        accuracy: the share of test digits told rightly after each epoch, shape `[epochs]`.
        test_loss: the loss on the test digits after each epoch, shape `[epochs]`.
    """

    loss: NDArray[Any]
    scalar: NDArray[Any]
    step_scale: NDArray[Any]
    shadow_ratio: NDArray[Any]
    accuracy: NDArray[Any]
    test_loss: NDArray[Any]


class Run(Protocol):
    """One training, in whichever framework."""

    def step(self, images: NDArray[Any], labels: NDArray[np.int64]) -> Step:
        """Takes one step with a batch of digits."""

    def evaluate(self, images: NDArray[Any], labels: NDArray[np.int64]) -> tuple[float, float]:
        """Returns the share of digits that the network tells rightly now, and its loss on them."""


def fetch(steps: Sequence[Step], result: tuple[float, float]) -> tuple[History, NDArray[Any]]:
    """Fetches the steps of one epoch all at once, and the weights after each, `[steps, weights]`."""
    *columns, weights = (
        np.stack([np.asarray(value) for value in column]) for column in zip(*steps, strict=True)
    )
    return History._make([*columns, *(np.asarray([value]) for value in result)]), weights


def join(epochs: Sequence[History]) -> History:
    """Puts epochs one behind the other."""
    return History(*(np.concatenate(column) for column in zip(*epochs, strict=True)))
