"""Several numbers of a state in two arrays, each read by its own name.

A compiled step takes a fixed time for each array of its state, which counts where a network is small. So
the numbers that belong together are in one array of floating-point numbers and one array of whole numbers.
"""

from typing import Any, NamedTuple, Self, overload

import jax
import jax.numpy as jnp
import numpy as np

from emo_optax._checks.errors import STATE_OF_ANOTHER
from emo_optax._checks.states import check_kinds


class Part:
    """The place of a value in an array of a state. As an attribute of a state it gives the value.

    Args:
        array: the array, "numbers" or "counts".
        at: the place in the last axis of the array, a whole number or a slice.
        is_flag: whether the value is a bool, which the array has as 0 or 1.
    """

    def __init__(self, array: str, at: int | slice, *, is_flag: bool = False) -> None:
        self.array, self.at, self.is_flag = array, at, is_flag

    @overload
    def __get__(self, state: None, kind: type) -> Self: ...
    @overload
    def __get__(self, state: object, kind: type) -> jax.Array: ...
    def __get__(self, state: Any, kind: type) -> Any:
        if state is None:
            return self
        value = getattr(state, self.array)[..., self.at]
        return value != 0 if self.is_flag else value


class _Arrays(NamedTuple):
    numbers: jax.Array
    counts: jax.Array


class PackedState(_Arrays):
    """A state of two arrays whose values have names; each subclass names its values.

    Attributes:
        numbers: the floating-point numbers, shape `[k]`.
        counts: the counts and flags, int32, shape `[m]`; a flag is 0 or 1.
    """

    __slots__ = ()

    @classmethod
    def parts(cls) -> dict[str, Part]:
        """Returns the place of each value by its name."""
        return {name: part for name, part in vars(cls).items() if isinstance(part, Part)}

    def named(self) -> dict[str, jax.Array]:
        """Returns the values by their names."""
        return {name: getattr(self, name) for name in self.parts()}

    def replace(self, **values: Any) -> Self:
        """Returns a state with new values in the place of some of the old values.

        Args:
            **values: the new values by their names, as arrays or as Python's or NumPy's numbers; each of
                the shape of the old value.

        Raises:
            TypeError: for a name that the state lacks, for a value of another kind, such as a float for a
                count, and for a value of another shape.
            ValueError: for a number that is not finite or too large, and for a negative count.
        """
        parts = self.parts()
        new = {"numbers": jnp.asarray(self.numbers), "counts": jnp.asarray(self.counts)}
        for name, value in values.items():
            if name not in parts:
                raise TypeError(
                    f"{type(self).__name__} has no value {name!r}; its values are {', '.join(parts)}"
                )
            part, old = parts[name], new[parts[name].array]
            _check(f"{type(self).__name__}.{name}", value, part, old)
            new[part.array] = old.at[..., part.at].set(jnp.asarray(value).astype(old.dtype))
        return self._replace(**new)


def _check(name: str, value: Any, part: Part, array: jax.Array) -> None:
    """Raises a `TypeError` for another kind or shape, a `ValueError` for a number out of range."""
    if isinstance(value, str | bytes):
        raise TypeError(f"{name} must be a number, and is the text {value!r}")
    kind = np.result_type(value) if isinstance(value, np.generic) else jnp.result_type(value)
    wanted = jnp.shape(array[..., part.at])
    is_whole = jnp.issubdtype(kind, jnp.integer)
    if part.is_flag:
        needed, fits = "bool", kind == jnp.bool_
    elif part.array == "counts":
        needed, fits = "a whole number", is_whole
    else:
        needed, fits = "a number", is_whole or jnp.issubdtype(kind, jnp.floating)
    if not fits or jnp.shape(value) != wanted:
        raise TypeError(f"{name} must be {needed} of the shape {wanted}, and is {value!r}")
    if part.is_flag or isinstance(value, jax.core.Tracer):
        return
    given, limits = np.asarray(value, object), jnp.iinfo if part.array == "counts" else jnp.finfo
    highest = int(limits(array.dtype).max)
    lowest = 0 if part.array == "counts" else -highest
    if not all(lowest <= number <= highest for number in given.flat):
        bounds = f"from {lowest} to {highest}" if lowest == 0 else f"finite in {array.dtype}"
        raise ValueError(f"{name} must be {bounds}, and is {value!r}")


def check_packed(name: str, state: Any, kind: type[PackedState], numbers: int, counts: int) -> None:
    """Raises a `ValueError` unless both arrays of a state have their kinds of numbers and their lengths."""
    if not isinstance(state, kind):
        has = type(state).__name__
        raise ValueError(STATE_OF_ANOTHER.format(problem=f"{name!r} is of the class {has}"))
    check_kinds(
        [
            (f"{name}.numbers", state.numbers, jnp.floating, (numbers,)),
            (f"{name}.counts", state.counts, jnp.integer, (counts,)),
        ]
    )
