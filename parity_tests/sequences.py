"""The inputs of the optimizers: losses that reach every branch, parameters, gradients."""

from collections.abc import Callable

import numpy as np

Arrays = dict[str, np.ndarray]


def _smooth(steps: int, random: np.random.Generator) -> np.ndarray:
    return 2.0 * np.exp(-np.arange(steps) / 80.0) + 0.1 + 0.02 * random.normal(size=steps)


def _spiky(steps: int, random: np.random.Generator) -> np.ndarray:
    losses = _smooth(steps, random)
    losses[9::17] += 3.0
    losses[10::43] += 0.4
    return losses


def _rising(steps: int, random: np.random.Generator) -> np.ndarray:
    return 0.5 + 0.05 * np.arange(steps) + 0.05 * random.normal(size=steps)


def _quiet(steps: int, random: np.random.Generator) -> np.ndarray:
    losses = 0.3 + 1e-4 * random.normal(size=steps)
    losses[: steps // 6] += np.linspace(2.0, 0.0, steps // 6)
    return losses


def _fading(steps: int, random: np.random.Generator) -> np.ndarray:
    # The scalar rises and fades so slowly that it passes every bound in small strides.
    del random
    return 0.2 + 0.03 * np.exp(-np.arange(steps) / 10.0)


def _surging(steps: int, random: np.random.Generator) -> np.ndarray:
    # Rises by all the factors that tell one level of divergence from another.
    return np.resize([1.0, 1.65, 0.7, 0.9, 0.5, 1.25, 0.6, 0.75, 0.95], steps) + 0.001 * random.random(
        steps
    )


def _to_zero(steps: int, random: np.random.Generator) -> np.ndarray:
    del random
    return np.exp(-np.arange(steps) / 10.0)


def _huge(steps: int, random: np.random.Generator) -> np.ndarray:
    return 1e30 * (1.0 + random.random(size=steps))


def _tiny(steps: int, random: np.random.Generator) -> np.ndarray:
    return 1e-30 * (1.0 + random.random(size=steps))


def _negative(steps: int, random: np.random.Generator) -> np.ndarray:
    return -1.0 - 0.02 * np.arange(steps) + 0.3 * random.normal(size=steps)


def _constant(steps: int, random: np.random.Generator) -> np.ndarray:
    del random
    return np.full(steps, 1234.5)


def _not_finite(steps: int, random: np.random.Generator) -> np.ndarray:
    losses = _spiky(steps, random)
    losses[4::13], losses[7::29], losses[8::31] = np.nan, np.inf, -np.inf
    return losses


def _not_finite_first(steps: int, random: np.random.Generator) -> np.ndarray:
    losses = _spiky(steps, random)
    losses[:3] = np.nan, np.inf, np.nan
    return losses


LOSSES: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "smooth": _smooth,
    "spiky": _spiky,
    "rising": _rising,
    "quiet": _quiet,
    "fading": _fading,
    "surging": _surging,
    "to_zero": _to_zero,
    "huge": _huge,
    "tiny": _tiny,
    "negative": _negative,
    "constant": _constant,
    "not_finite": _not_finite,
    "not_finite_first": _not_finite_first,
}

SHAPES: dict[str, tuple[int, ...]] = {
    "scalar": (),
    "vector": (7,),
    "one": (1,),
    "matrix": (5, 6),
    "row": (1, 4),
    "column": (4, 1),
    "cube": (3, 2, 4),
    "conv": (3, 2, 2, 3),
    "ones": (1, 1, 1, 1),
    "empty": (0,),
    "empty_matrix": (0, 3),
    "empty_rows": (3, 0),
}

FEW = ("vector", "matrix", "conv")
"""Names of `SHAPES` with one of each kind: for what does not depend on a shape."""


def losses(kind: str, steps: int, seed: int = 0) -> np.ndarray:
    """Returns the losses of a run, float64, shape `[steps]`."""
    return LOSSES[kind](steps, np.random.default_rng(seed))


def params(dtype: str, seed: int = 0, shapes: dict[str, tuple[int, ...]] | None = None) -> Arrays:
    """Returns parameters of every shape that matters."""
    random = np.random.default_rng(seed)
    return {
        name: np.asarray(random.normal(size=shape), dtype) for name, shape in (shapes or SHAPES).items()
    }


def gradients(like: Arrays, step: int, seed: int = 0) -> Arrays:
    """Returns the gradients of one step: rows never used, elements under the threshold, spikes, zeros."""
    random = np.random.default_rng([seed, step])
    drawn: Arrays = {}
    for name, param in like.items():
        size = 10.0 ** random.uniform(-3.0, 0.0) * (100.0 if step % 37 == 5 else 1.0)
        grad = size * random.normal(size=param.shape)
        flat = grad.reshape(-1)
        if flat.size >= 4:
            flat[0] = 0.0
            flat[1] = random.choice([0.0, 1e-14, 3e-11])  # On both sides of the filter's threshold.
            flat[2] = random.choice([1e-8, 1e-4])  # On both sides of EmoAiry's for vectors.
        if step % 11 == 7 or (name == "matrix" and step % 5 == 2):
            flat[:] = 0.0
        drawn[name] = np.asarray(grad, param.dtype)
    return drawn


_DRAWN: dict[tuple[str, int], list[Arrays]] = {}
"""The gradients drawn so far, by dtype and seed."""


def all_gradients(dtype: str, seed: int, steps: int) -> list[Arrays]:
    """Returns the gradients of the first steps of `params(dtype, seed)`: drawn once, and read-only."""
    drawn = _DRAWN.setdefault((dtype, seed), [])
    like = params(dtype, seed)
    for step in range(len(drawn), steps):
        drawn.append(gradients(like, step, seed))
        for grad in drawn[-1].values():
            grad.setflags(write=False)
    return drawn[:steps]
