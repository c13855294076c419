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

EPOCHS = 7

FLOAT32_EPOCHS = {
    "emo_lynx": 1,
    "emo_zeal": 1,
    "emo_clan": 0,
    "emo_neco": 0,
    "emo_cats3": 2,
    "emo_tion": 2,
    "emo_void": 3,
    "emo_lynx36": 1,
    "emo_airy3": 3,
    "emo_fact36": 0,
    "emo_pilot": 1,
    "emo_pilot_airy": 1,
}
"""How many epochs some members are held to the band in float32; the others as long as in float64.

A member that takes a sign, or chooses a rule by the scalar, does one thing on one side of a border and
another thing on the other side. In float32 a rounding of a gradient, fed back, sooner or later decides on
which side a number lies, and every processor rounds in its own way. EmoPilot lengthens its steps as
long as they agree with the gradients: at such a length a rounding of float32 grows several times in each
epoch. These are the epochs before the first such decision or growth, whatever the processor:
`parity_tests.roundings` finds it with noise, and `closed_loop_test.py` holds these numbers to it. In
float64 a rounding is 2^29 times smaller, and the same decisions stand far from a border: only EmoTion,
which divides by the difference of nearly equal sums, has such a decision there, in the epochs that
`FLOAT64_EPOCHS` leaves out.
"""

FLOAT64_EPOCHS = {"emo_tion": 4}
"""The same in float64."""


WITH_EMOTION = tuple(name for name, family in OPTIMIZERS.items() if family.memory == "emotion")
"""The members that are trained here: the members with the emotion of v2.0."""
LATER = tuple(name for name in OPTIMIZERS if name not in WITH_EMOTION)
"""The members with another memory: v3.6.1, v3.9.1 and EmoPilot."""


def epochs(optimizer: str, dtype: str) -> int:
    """Returns how many epochs a member is held to the band in a dtype."""
    held = FLOAT32_EPOCHS if dtype == "float32" else FLOAT64_EPOCHS
    return held.get(optimizer, EPOCHS)


def pairs(optimizers: Collection[str] = WITH_EMOTION) -> list[tuple[str, str]]:
    """Returns the trainings: members by their names in `emo_optax`, each with a dtype."""
    return [
        (name, dtype)
        for name in optimizers
        for dtype in CLOSED_LOOP
        if name in OPTIMIZERS and epochs(name, dtype) > 0
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
        return float(np.max(self.gap / band(self.torch_loss, self.dtype)))


def band(losses: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Returns how far a loss may be from each of some losses."""
    tolerance = CLOSED_LOOP[dtype]
    found: NDArray[Any] = tolerance.absolute + tolerance.relative * np.abs(losses)
    return found


def _first(found: NDArray[np.bool_]) -> int | None:
    return int(np.argmax(found)) if found.any() else None


def run(optimizer: str, dtype: str = "float32", length: int | None = None, seed: int = 0) -> ClosedLoop:
    """Trains the network in both frameworks, for `length` epochs or as many as the member is held."""
    rate = OPTIMIZERS[optimizer].learning_rate
    length = epochs(optimizer, dtype) if length is None else length
    settings = Settings(optimizer=optimizer, learning_rate=rate, epochs=length, seed=seed, dtype=dtype)
    comparison = compare(settings, with_control=False)
    flax, torch = comparison.flax.loss, comparison.torch.loss
    # Written such that a NaN counts as outside.
    outside = ~(np.abs(flax - torch) <= band(torch, dtype))
    visible = ~(comparison.difference <= VISIBLE[dtype])
    return ClosedLoop(
        optimizer, dtype, flax, torch, comparison.difference, _first(outside), _first(visible)
    )
