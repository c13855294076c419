"""The tensors that are stepped: their shapes, and numbers to fill them with."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Arrays = list[NDArray[np.float32]]


class Problem(NamedTuple):
    """A network, of which only the shapes of the parameters matter.

    Attributes:
        title: its name in the report.
        shapes: the shapes of its parameters.
        more_rounds: how many times the rounds to measure, where steps are short.
    """

    title: str
    shapes: tuple[Shape, ...]
    more_rounds: int = 1

    @property
    def elements(self) -> int:
        """How many numbers its parameters have together."""
        return sum(math.prod(shape) for shape in self.shapes)


def gpt2_shapes() -> tuple[Shape, ...]:
    """Returns the shapes of GPT-2 small: 148 tensors, 124 million numbers.

    Example:
        >>> from benchmarks.step_time.problems import gpt2_shapes
        >>> len(gpt2_shapes()), gpt2_shapes()[0]
        (148, (50257, 768))
    """
    width = 768
    norm: tuple[Shape, ...] = ((width,), (width,))

    def linear(inward: int, outward: int) -> tuple[Shape, ...]:
        return (inward, outward), (outward,)

    block = (
        *(*norm, *linear(width, 3 * width), *linear(width, width)),
        *(*norm, *linear(width, 4 * width), *linear(4 * width, width)),
    )
    return ((50257, width), (1024, width), *(12 * block), *norm)


def lora_shapes(leaves: int = 1000) -> tuple[Shape, ...]:
    """Returns the shapes of adapters of rank 8 on layers of width 1024, two for each layer.

    Example:
        >>> from benchmarks.step_time.problems import lora_shapes
        >>> lora_shapes(2)
        ((1024, 8), (8, 1024))
    """
    return ((1024, 8), (8, 1024)) * (leaves // 2)


PROBLEMS = {
    "gpt2": Problem("GPT-2", gpt2_shapes()),
    "lora": Problem("LoRA", lora_shapes(), more_rounds=2),
    "tiny": Problem("tiny", ((16, 12), (12,))),
}
"""Problems by name; `tiny` is for tests, and measures nothing but overhead."""


def fill(shapes: tuple[Shape, ...], scale: float, seed: int) -> Arrays:
    """Returns arrays of normally distributed numbers."""
    source = np.random.default_rng(seed)
    arrays = [source.standard_normal(shape, np.float32) for shape in shapes]
    for array in arrays:
        array *= scale
    return arrays


def parameters(problem: Problem) -> Arrays:
    """Returns parameters as a network's may be."""
    return fill(problem.shapes, 0.02, seed=0)


def gradients(problem: Problem) -> Arrays:
    """Returns gradients for them."""
    return fill(problem.shapes, 1e-3, seed=1)
