"""The plan of a soak, its random numbers, and its results."""

import gc
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

from parity_tests.compare import Difference
from parity_tests.drive import Arrays

SHAPES: dict[str, tuple[int, ...]] = {"matrix": (4, 3), "vector": (5,), "scalar": ()}
LOCKSTEP_STEPS = 300
"""So many steps the bounds of `tolerances` are made for."""
POOL = 499
"""So many different gradients there are: a prime, so that they meet every kind of loss."""
MOST_GROWTH = 16.0
"""The allowed growth of resident memory after the warm-up, in MiB: the allocators' own noise."""


class Soak(NamedTuple):
    """One long run.

    Attributes:
        optimizer: the member's name in PyTorch.
        dtype: of parameters and gradients.
        options: its options, by PyTorch's names.
    """

    optimizer: str
    dtype: str
    options: dict[str, Any] = {}  # noqa: RUF012


SOAKS = [
    Soak(name, dtype, {"use_shadow": True} if name == "EmoNeco" else {})
    for dtype in ("float64", "float32")
    for name in ("EmoSens", "EmoAiry", "EmoCats", "EmoNeco")
]


class Memory(NamedTuple):
    """The objects that a process holds.

    Attributes:
        tensors: live tensors of PyTorch.
        arrays: live arrays of JAX.
        resident: resident memory in MiB; 0 where the system does not tell.
    """

    tensors: int
    arrays: int
    resident: float

    @classmethod
    def now(cls) -> "Memory":
        """Looks at this process, once nothing is left to be freed."""
        gc.collect()
        tensors = sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())
        pages = Path("/proc/self/statm")
        resident = 0.0
        if pages.exists():
            resident = int(pages.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
        return cls(tensors, len(jax.live_arrays()), resident)


class Result(NamedTuple):
    """The result of a run.

    Attributes:
        soak: the run.
        steps: the requested steps, also the steps that a fault stopped.
        faults: how often each fault took place.
        gaps: the largest difference of each group of leaves.
        growth: the largest difference of a parameter until so many steps.
        first_excess: the first step after which a bound was exceeded, and the leaf; or `None`.
        before: the memory after the warm-up.
        after: the memory at the end.
    """

    soak: Soak
    steps: int
    faults: Counter[str]
    gaps: dict[str, Difference]
    growth: dict[int, float]
    first_excess: tuple[int, str] | None
    before: Memory
    after: Memory

    def failures(self) -> list[str]:
        """Returns the errors of the run, in words."""
        wrong = []
        if self.first_excess is not None:
            step, leaf = self.first_excess
            wrong.append(f"{leaf} was beyond its bound after step {step}")
        if self.after.tensors > self.before.tensors:
            wrong.append(f"{self.after.tensors - self.before.tensors} tensors more than after the warm-up")
        if self.after.arrays > self.before.arrays:
            wrong.append(f"{self.after.arrays - self.before.arrays} arrays more than after the warm-up")
        grown = self.after.resident - self.before.resident
        if grown > MOST_GROWTH:
            wrong.append(f"{grown:.0f} MiB more than after the warm-up")
        return wrong


def draw_gradients(dtype: str, random: np.random.Generator) -> Arrays:
    """Draws one gradient: of any size, with zeros, and now and then a hundred times as large."""
    size = 10.0 ** random.uniform(-3.0, 0.0) * (100.0 if random.random() < 0.03 else 1.0)
    return {
        name: np.asarray(size * random.normal(size=shape) * (random.random(shape) > 0.1), dtype)
        for name, shape in SHAPES.items()
    }


def draw_loss(step: int, random: np.random.Generator) -> float:
    """Draws one loss: it falls, and starts again every 5000 steps."""
    return float(0.3 * np.exp(-(step % 5000) / 1500.0) + 0.1 + 0.02 * random.normal())


FAULTS = {
    "NaN loss": 0.005,
    "infinite loss": 0.005,
    "spike": 0.01,
    "missing loss": 0.0005,
    "no number": 0.0005,
    "NaN gradient": 0.01,
    "learning rate": 0.002,
    "file": 0.001,
    "bridge": 0.001,
}
"""How likely each fault is in a step."""
