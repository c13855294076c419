"""Drives both packages with the same parameters, gradients and losses, and compares all that they hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax

from parity_tests import sequences
from parity_tests.compare import Difference, difference
from parity_tests.drive import Arrays, OptaxDrive, TorchDrive
from parity_tests.family import Member
from parity_tests.tolerances import LOCKSTEP


class Lockstep(NamedTuple):
    """What a run of both sides showed.

    Attributes:
        params: the largest difference of parameters over the run.
        leaves: the same for every leaf of the state, by name.
        steps: the difference of parameters after each step.
        first_excess: the first step, from 0, after which a bound was exceeded, and where; or `None`.
    """

    params: Difference
    leaves: dict[str, Difference]
    steps: list[Difference]
    first_excess: tuple[int, str] | None


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Turns x64 on in JAX where a run is in float64, and off elsewhere."""
    with jax.enable_x64(dtype == "float64"):
        yield


def run(
    member: Member,
    options: dict[str, Any],
    *,
    dtype: str = "float64",
    losses: str = "spiky",
    steps: int = 300,
    seed: int = 0,
    params: Arrays | None = None,
) -> Lockstep:
    """Runs both sides for some hundred steps and compares every leaf after every one."""
    tolerance = LOCKSTEP[dtype]
    worst = Difference()
    leaves: dict[str, Difference] = {}
    history: list[Difference] = []
    first_excess: tuple[int, str] | None = None
    with precision(dtype):
        start = sequences.params(dtype, seed) if params is None else params
        ours, theirs = OptaxDrive(member, start, options), TorchDrive(member, start, options)
        for step, loss in enumerate(sequences.losses(losses, steps, seed)):
            grads = sequences.gradients(start, step, seed)
            ours.step(grads, float(loss))
            theirs.step(grads, float(loss))
            pairs = {f"param/{name}": array for name, array in ours.params().items()} | ours.state()
            others = {f"param/{name}": array for name, array in theirs.params().items()} | theirs.state()
            if pairs.keys() != others.keys():
                raise AssertionError(f"only one side has {sorted(pairs.keys() ^ others.keys())}")
            moved = Difference()
            for name, value in pairs.items():
                gap = difference(value, others[name], tolerance)
                if gap.excess > 1.0 and first_excess is None:
                    first_excess = (step, name)
                if name.startswith("param/"):
                    moved = moved.join(gap)
                else:
                    leaves[name] = leaves.get(name, Difference()).join(gap)
            worst = worst.join(moved)
            history.append(moved)
    return Lockstep(worst, leaves, history, first_excess)
