"""The surfaces' measurements: final values over learning rates and starts, and paths.

Everything of one optimizer is a single compiled function: a scan over the steps, of all starts and
learning rates at once, for one surface after the other. Nobody decays weights here: that would pull
towards the origin, where two of the surfaces happen to have their lowest point.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from examples.yardstick.optimizers import Contender, make_in_optax
from examples.yardstick.surfaces import SURFACES, height, starts

GRIDS: dict[str, NDArray[np.float64]] = {
    "0 to 5": np.linspace(0.0, 5.0, 26),
    "0 to 0.5": np.linspace(0.0, 0.5, 26),
    "1e-5 to 10": np.logspace(-5, 1, 25),
}
"""Learning rates: the two linear grids of the comparison that this follows, and quarters of a decade."""

WIDTH_GRID = "1e-5 to 10"
ARRIVED = 1e-3
"""The share of its starting height below which a run counts as arrived, however much lower it gets."""
WITHIN = 1.5
LIMIT = 12.0
"""Heights are kept as decimal logarithms from -12 to 12, the latter also for runs that diverged."""


def run_surfaces(contender: Contender, steps: int) -> dict[str, Any]:
    """Runs an optimizer on all surfaces.

    Args:
        contender: the optimizer.
        steps: how many steps each run takes, > 0.

    Returns:
        For each surface: `maps`, the decimal logarithm of the final height above the lowest value, by
        grid, learning rate and start; `width` (see `width_in_decades`); `best_rate` and `best`, the
        learning rate of `WIDTH_GRID` with the lowest median over the starts, and that median; and
        `paths`, the points visited from the first start with the best and with the default learning
        rate.
    """
    rates = np.concatenate([*GRIDS.values(), [contender.default]]).astype(np.float32)
    paths = np.asarray(jax.jit(trajectories(contender, steps))(rates))
    return {name: _summarise(name, contender, paths[index]) for index, name in enumerate(SURFACES)}


def trajectories(contender: Contender, steps: int) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    """Returns a function, to be compiled, that does every run of an optimizer.

    Args:
        contender: the optimizer.
        steps: how many steps each run takes, > 0.

    Returns:
        A function from learning rates, shape `[rates]`, to the points visited, shape
        `[surfaces, rates, starts, steps + 1, 2]`.
    """
    begin = jnp.asarray(np.stack([starts(surface) for surface in SURFACES.values()]))
    branches = [lambda point, name=name: height(name, point) for name in SURFACES]

    def run(index: jax.Array, rate: jax.Array, start: jax.Array) -> jax.Array:
        optimizer = make_in_optax(contender, rate, steps)

        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            point, state = carry
            loss, slope = jax.value_and_grad(lambda at: jax.lax.switch(index, branches, at))(point)
            updates, state = optimizer.update(slope, state, point, value=loss)
            return (optax.apply_updates(point, updates), state), point

        (last, _), before = jax.lax.scan(step, (start, optimizer.init(start)), length=steps)
        return jnp.concatenate([before, last[None]])

    over_starts = jax.vmap(run, in_axes=(None, None, 0))
    over_rates = jax.vmap(over_starts, in_axes=(None, 0, None))

    def run_all(rates: jax.typing.ArrayLike) -> jax.Array:
        # One surface after the other, so that the index is no batch and the switch runs one branch only.
        points: jax.Array = jax.lax.map(
            lambda index: over_rates(index, jnp.asarray(rates), begin[index]), jnp.arange(len(SURFACES))
        )
        return points

    return run_all


def _summarise(name: str, contender: Contender, paths: NDArray[np.float32]) -> dict[str, Any]:
    last = jnp.asarray(paths[:, :, -1])
    values = np.asarray(SURFACES[name].value(last[..., 0], last[..., 1]), np.float64)
    heights = _logarithms(values - SURFACES[name].lowest)
    maps, first = {}, 0
    for grid, rates in GRIDS.items():
        maps[grid] = heights[first : first + len(rates)]
        first += len(rates)
    medians = 10.0 ** np.median(maps[WIDTH_GRID], axis=1)
    best = int(medians.argmin())
    offset = first - len(GRIDS[WIDTH_GRID])
    return {
        "maps": {grid: np.round(values, 1).tolist() for grid, values in maps.items()},
        "width": width_in_decades(GRIDS[WIDTH_GRID], medians, ARRIVED * _start_height(name)),
        "best_rate": float(GRIDS[WIDTH_GRID][best]),
        "best": float(f"{medians[best]:.4g}"),
        "default": float(f"{10.0 ** np.median(heights[-1]):.4g}"),
        "default_rate": contender.default,
        "paths": {"best": _points(paths[offset + best, 0]), "default": _points(paths[-1, 0])},
    }


def width_in_decades(rates: NDArray[np.float64], heights: NDArray[np.float64], arrived: float) -> float:
    """Returns how many decades of learning rates end within 1.5 times of the best.

    Args:
        rates: learning rates, evenly spaced on a logarithmic scale, shape `[rates]`.
        heights: the final height of each above the lowest value, shape `[rates]`.
        arrived: the height below which differences don't count.

    Returns:
        The number of such rates, each counting for the distance between two of them.

    Example:
        >>> import numpy as np
        >>> rates = np.asarray([1e-3, 1e-2, 1e-1, 1.0])
        >>> width_in_decades(rates, np.asarray([9.0, 1.2, 1.0, 50.0]), arrived=0.1)
        2.0
    """
    spacing = float(np.log10(rates[1] / rates[0]))
    good = heights <= WITHIN * max(float(heights.min()), arrived)
    return round(spacing * int(good.sum()), 4)


def _start_height(name: str) -> float:
    begin = jnp.asarray(starts(SURFACES[name]))
    values = np.asarray(SURFACES[name].value(begin[:, 0], begin[:, 1]))
    return float(np.median(values - SURFACES[name].lowest))


def _logarithms(heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns decimal logarithms; rounding may put a height below 0."""
    wild = ~np.isfinite(heights)
    logarithms = np.log10(np.maximum(np.where(wild, 1.0, heights), 10.0**-LIMIT))
    return np.where(wild, LIMIT, np.minimum(logarithms, LIMIT))


def _points(path: NDArray[np.float32]) -> list[list[float]]:
    """Returns a path as numbers of four digits, up to where it left for infinity."""
    finite = np.isfinite(path).all(axis=1) & (np.abs(path) < 1e4).all(axis=1)
    count = len(path) if finite.all() else int(finite.argmin())
    return [[float(f"{value:.4g}") for value in point] for point in path[:count]]
