"""Four functions of two numbers to go down on: two bowls, Rosenbrock's valley, Rastrigin's egg box."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

STARTS_PER_AXIS = 4


class Surface(NamedTuple):
    """A function to be minimised.

    Attributes:
        title: its name in tables and pictures.
        formula: the function as it is written.
        value: from the two coordinates, arrays of any one shape, to the value.
        lowest: its smallest value.
        corner: the starts and pictures cover x and y from minus this to plus this.
    """

    title: str
    formula: str
    value: Callable[[Any, Any], Any]
    lowest: float
    corner: float


def _bowl(x: Any, y: Any) -> Any:
    return 20.0 * x**2 + 2.0 * y**2


def _ripples(x: Any, y: Any) -> Any:
    return 2.0 * x**2 + 10.0 * y**2 + 10.0 * jnp.sin(5.0 * y)


def _rosenbrock(x: Any, y: Any) -> Any:
    return (1.0 - x) ** 2 + 100.0 * (y - x**2) ** 2


def _rastrigin(x: Any, y: Any) -> Any:
    waves = jnp.cos(2.0 * jnp.pi * x) + jnp.cos(2.0 * jnp.pi * y)
    return 20.0 + x**2 + y**2 - 10.0 * waves


SURFACES: dict[str, Surface] = {
    "bowl": Surface("Bowl", "20 x^2 + 2 y^2", _bowl, 0.0, 2.0),
    # The lowest value is at y = -0.290839.
    "ripples": Surface("Ripples", "2 x^2 + 10 y^2 + 10 sin(5 y)", _ripples, -9.0862244, 2.0),
    "rosenbrock": Surface("Rosenbrock", "(1 - x)^2 + 100 (y - x^2)^2", _rosenbrock, 0.0, 2.0),
    "rastrigin": Surface(
        "Rastrigin", "20 + x^2 + y^2 - 10 (cos 2 pi x + cos 2 pi y)", _rastrigin, 0.0, 4.5
    ),
}


def starts(surface: Surface) -> NDArray[np.float32]:
    """Returns the points to start from, a grid that avoids the axes; shape `[16, 2]`.

    The first one, at the lower left, is also where the paths in the pictures begin.
    """
    # Not quite symmetric: from a point on the diagonal of an even function sign rules see one number.
    across = np.linspace(-0.85, 0.95, STARTS_PER_AXIS) * surface.corner
    up = np.linspace(-0.95, 0.75, STARTS_PER_AXIS) * surface.corner
    return np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2).astype(np.float32)


def height(name: str, point: jax.Array) -> jax.Array:
    """Returns the value of a surface at a point of shape `[2]`."""
    return jnp.asarray(SURFACES[name].value(point[0], point[1]))
