"""The closed loop: a Flax model and its PyTorch copy, each trained on its own gradients.

The lockstep gives both sides the same gradients, so that a difference cannot feed on itself. Here it
can: a convolutional network learns handwritten digits in Flax NNX and in PyTorch, from the same weights
and batches, and its losses must stay within a band.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from examples.digits.comparison import compare
from examples.digits.settings import OPTIMIZERS, Settings
from parity_tests.tolerances import CLOSED_LOOP, VISIBLE

STEPS_PER_EPOCH = 44

SWITCHING = ("emo_clan", "emo_neco")
"""Members that choose a rule by the scalar: in float32 a rounding of the loss, fed back over some hundred
steps, sooner or later decides which. They are held to the band in float64."""


def pairs(optimizers: Collection[str] = tuple(OPTIMIZERS)) -> list[tuple[str, str]]:
    """Returns what is trained: members by their names in `emo_optax`, each with a dtype."""
    return [
        (name, dtype)
        for name in optimizers
        for dtype in CLOSED_LOOP
        if name in OPTIMIZERS and not (name in SWITCHING and dtype == "float32")
    ]


class ClosedLoop(NamedTuple):
    """Two trainings beside each other.

    Attributes:
        optimizer: the optimizer's name in `emo_optax`.
        dtype: "float32" or "float64".
        flax_loss: the loss at each step in Flax, shape `[steps]`.
        torch_loss: the same in PyTorch.
        weights: how far apart the weights are after each step, in the one that differs most; `[steps]`.
        first_excess: the first step, from 0, at which the losses leave the band, or `None`.
        first_visible: the first step at which a weight differs visibly, or `None`.
    """

    optimizer: str
    dtype: str
    flax_loss: NDArray[Any]
    torch_loss: NDArray[Any]
    weights: NDArray[Any]
    first_excess: int | None
    first_visible: int | None

    @property
    def gap(self) -> NDArray[Any]:
        """The difference of the losses at each step, shape `[steps]`."""
        gap: NDArray[Any] = np.abs(self.flax_loss - self.torch_loss)
        return gap

    @property
    def of_band(self) -> float:
        """The largest difference of the losses, in units of the band."""
        return float(np.max(self.gap / _band(self.torch_loss, self.dtype)))


def _band(losses: NDArray[Any], dtype: str) -> NDArray[Any]:
    tolerance = CLOSED_LOOP[dtype]
    band: NDArray[Any] = tolerance.absolute + tolerance.relative * np.abs(losses)
    return band


def _first(found: NDArray[np.bool_]) -> int | None:
    return int(np.argmax(found)) if found.any() else None


def run(optimizer: str, dtype: str = "float32", epochs: int = 7, seed: int = 0) -> ClosedLoop:
    """Trains the network in both frameworks, 44 steps an epoch."""
    rate = OPTIMIZERS[optimizer].learning_rate
    settings = Settings(optimizer=optimizer, learning_rate=rate, epochs=epochs, seed=seed, dtype=dtype)
    comparison = compare(settings)
    flax, torch = comparison.flax.loss, comparison.torch.loss
    # Written such that a NaN counts as outside.
    outside = ~(np.abs(flax - torch) <= _band(torch, dtype))
    visible = ~(comparison.difference <= VISIBLE[dtype])
    return ClosedLoop(
        optimizer, dtype, flax, torch, comparison.difference, _first(outside), _first(visible)
    )
