"""Drives both packages with the same parameters, gradients and losses, and compares all that they hold."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from emo_shared.eight_bit import EIGHT_BIT
from parity_tests import sequences
from parity_tests.compare import Difference, differences, with_sums
from parity_tests.drive import SIDES, Arrays
from parity_tests.family import FAMILY, Member
from parity_tests.tolerances import LOCKSTEP, bound

LARGE = {"matrix": (70, 61), "vector": (4097,), "small": (3, 5)}
"""The shapes of parameters whose moments are in 8 bits, and of one whose moments are not."""


class Case(NamedTuple):
    """One run: the inputs of both sides.

    Attributes:
        optimizer: the member's name in PyTorch.
        options: its options, by PyTorch's names; a dtype as a word.
        dtype: of the parameters and gradients.
        losses: a kind of `sequences.LOSSES`.
        steps: how many steps.
        seed: of the parameters, gradients and losses.
        few: whether to drive only the parameters of `sequences.FEW`.
    """

    optimizer: str
    options: dict[str, Any] = {}  # noqa: RUF012
    dtype: str = "float64"
    losses: str = "spiky"
    steps: int = 300
    seed: int = 0
    few: bool = False


class Lockstep(NamedTuple):
    """The differences of two runs of one case.

    Attributes:
        leaves: the largest difference of every leaf over the run, by name.
        steps: the difference of all parameters after each step.
        first_excess: the first step, from 0, after which a bound was exceeded, and where; or `None`.
    """

    leaves: dict[str, Difference]
    steps: list[Difference]
    first_excess: tuple[int, str] | None

    def over(self, prefix: str) -> Difference:
        """Returns the difference of all leaves whose name begins so."""
        joined = Difference()
        for name, gap in self.leaves.items():
            if name.startswith(prefix):
                joined = joined.join(gap)
        return joined


def trajectory(
    side: str, case: Case, device: str = "cpu", member: Member | None = None, is_reversed: bool = False
) -> Arrays:
    """Runs one side and returns every leaf after every step, each with the steps as first axis.

    Args:
        side: a name in `drive.SIDES`.
        case: the inputs.
        device: where the side computes.
        member: the member, if not the case's.
        is_reversed: whether the side is given all arrays with their elements in reverse order. The leaves
            are returned in the usual order. Sums then add in another order, and nothing else is different.
    """
    with jax.enable_x64(case.dtype == "float64"):
        # Small arrays have no codes.
        shapes = LARGE if case.options.get("moment_dtype") == EIGHT_BIT else None
        start = _some(sequences.params(case.dtype, case.seed, shapes), case)
        given = _reversed(start) if is_reversed else start
        drive = SIDES[side](member or FAMILY[case.optimizer], given, case.options, device)
        if shapes is None:
            drawn = sequences.all_gradients(case.dtype, case.seed, case.steps)
            grads = [_some(grad, case) for grad in drawn]
        else:
            grads = [sequences.gradients(start, step, case.seed) for step in range(case.steps)]
        if is_reversed:
            grads = [_reversed(grad) for grad in grads]
        losses = sequences.losses(case.losses, case.steps, case.seed)
        for grad, loss in zip(grads, losses, strict=True):
            drive.step(grad, float(loss))
            drive.keep()
        rows = with_sums(drive.history())
    if is_reversed:
        rows = {name: np.flip(row, tuple(range(1, row.ndim))) for name, row in rows.items()}
    return {name: rows[name] for name in sorted(rows)}


def _some(arrays: Arrays, case: Case) -> Arrays:
    """Returns the arrays of the parameters that a case drives."""
    return {name: arrays[name] for name in sequences.FEW} if case.few else arrays


def _reversed(arrays: Arrays) -> Arrays:
    return {name: np.flip(array).copy() for name, array in arrays.items()}


def compare(values: Arrays, references: Arrays, case: Case) -> Lockstep:
    """Measures one run of a case against another, leaf by leaf and step by step."""
    if values.keys() != references.keys():
        raise AssertionError(f"only one side has {sorted(values.keys() ^ references.keys())}")
    leaves: dict[str, Difference] = {}
    steps = [Difference()] * case.steps
    excesses: list[tuple[int, str]] = []
    memory = FAMILY[case.optimizer].memory
    for name, value in values.items():
        gaps = differences(value, references[name], bound(name, case.dtype, case.options, memory))
        leaves[name] = functools.reduce(Difference.join, gaps)
        if name.startswith("param/"):
            steps = [step.join(gap) for step, gap in zip(steps, gaps, strict=True)]
        excesses.extend((step, name) for step, gap in enumerate(gaps) if gap.excess > 1.0)
    least = LOCKSTEP[case.dtype].equal
    excesses.extend(
        (step, "share of equal values") for step, gap in enumerate(steps) if gap.equal < least * gap.values
    )
    return Lockstep(leaves, steps, min(excesses, default=None))


def run(case: Case) -> Lockstep:
    """Runs both sides in this process and compares them."""
    return compare(trajectory("optax", case), trajectory("torch", case), case)
