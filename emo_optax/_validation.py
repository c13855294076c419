"""Checks of what a user passes in, made before anything is computed.

Only Python and NumPy numbers are checked: `optax.inject_hyperparams` passes traced arrays, whose
values nobody knows while a step is traced.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emo_optax._errors import LOSS_MISSING, PARAMS_MISSING, LossMissingError


def is_number(value: object) -> bool:
    """Returns whether a value is known while a step is traced."""
    return isinstance(value, int | float | np.number)


def hyperparameter(value: Any, dtype: Any) -> Any:
    """Returns a hyperparameter such that arithmetic with it stays in `dtype`."""
    # A number stays one (`1 - b2` taken in float32 would be off by 1e-5), but a NumPy double, which
    # would widen what it meets, becomes Python's.
    return float(value) if is_number(value) else jnp.asarray(value, dtype)


def _is_known(name: str, value: object, *, may_be_schedule: bool = False) -> bool:
    """Returns whether a number is known already, or raises a `TypeError` if it is none at all."""
    if is_number(value):
        return True
    if isinstance(value, jax.Array | np.ndarray) or (may_be_schedule and callable(value)):
        return False
    kinds = "a number, an array or a schedule" if may_be_schedule else "a number or an array"
    raise TypeError(f"Invalid {name}: {value!r}; it must be {kinds}")


def check_learning_rate(learning_rate: object) -> None:
    """Raises an error unless the learning rate is a schedule, an array or finite and >= 0."""
    is_known = _is_known("learning_rate", learning_rate, may_be_schedule=True)
    if is_known and not 0.0 <= learning_rate < math.inf:  # type: ignore[operator]
        raise ValueError(f"Invalid learning rate: {learning_rate}; it must be finite and at least 0")


def check_decay_rate(name: str, value: object) -> None:
    """Raises an error unless a decay rate of an average is in [0, 1)."""
    if _is_known(name, value) and not 0.0 <= value < 1.0:  # type: ignore[operator]
        raise ValueError(f"Invalid {name}: {value}; it must be in [0, 1)")


def check_factor(name: str, value: object) -> None:
    """Raises an error unless the weight of a new value in an average is in (0, 1]."""
    if _is_known(name, value) and not 0.0 < value <= 1.0:  # type: ignore[operator]
        raise ValueError(f"Invalid {name}: {value}; it must be in (0, 1]")


def check_not_negative(name: str, value: object, *, may_be_schedule: bool = False) -> None:
    """Raises an error unless a number is finite and at least 0."""
    is_known = _is_known(name, value, may_be_schedule=may_be_schedule)
    if is_known and not 0.0 <= value < math.inf:  # type: ignore[operator]
        raise ValueError(f"Invalid {name}: {value}; it must be finite and at least 0")


def check_at_most_one(name: str, value: object) -> None:
    """Raises an error unless a share is in [0, 1]."""
    if _is_known(name, value) and not 0.0 <= value <= 1.0:  # type: ignore[operator]
        raise ValueError(f"Invalid {name}: {value}; it must be in [0, 1]")


def check_order(low_name: str, low: object, high_name: str, high: object) -> None:
    """Raises a `ValueError` if the first of two numbers is above the second."""
    if is_number(low) and is_number(high) and low > high:  # type: ignore[operator]
        raise ValueError(f"Invalid {low_name}: {low}; it must not be above {high_name}, {high}")


def check_max_steps(value: object) -> None:
    """Raises a `ValueError` unless the length of a run is a whole number >= 1, or not known."""
    if is_number(value) and not (1 <= value < 2**31 and value == int(value)):  # type: ignore[operator, call-overload]
        raise ValueError(f"Invalid ref_max_steps: {value}; it must be a whole number >= 1, or None")


def check_every_k_schedule(value: Any) -> Any:
    """Returns how many micro-batches make a step, a whole number >= 1 or a function, or raises an error."""
    if callable(value):
        return value
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"Invalid every_k_schedule: {value!r}; it must be a whole number or a function")
    if value < 1:
        raise ValueError(f"Invalid every_k_schedule: {value}; it must be at least 1")
    return int(value)


def check_bounds(name: str, value: Any) -> None:
    """Raises a `ValueError` unless bounds are `None` or a smaller and a larger number."""
    if value is None:
        return
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"Invalid {name}: {value!r}; it must be a pair, the least and the largest value")
    are_known = [_is_known(name, bound) for bound in value]
    if all(are_known) and not value[0] <= value[1]:
        raise ValueError(f"Invalid {name}: {value!r}; the first must not be above the second")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises a `ValueError` unless a word is one of those known."""
    if value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"Invalid {name}: {value!r}; it must be one of {known}")


def check_seed(value: object) -> None:
    """Raises a `ValueError` unless a seed is a whole number of 32 bits."""
    if not isinstance(value, int) or not 0 <= value < 2**32:
        raise ValueError(f"Invalid seed: {value!r}; it must be a whole number in [0, 2^32)")


def check_not_injected(name: str, value: object) -> None:
    """Raises a `TypeError` for an array where optax.inject_hyperparams took a function for a schedule."""
    if isinstance(value, jax.Array):
        raise TypeError(
            f"Invalid {name}: an array. optax.inject_hyperparams takes every function for a schedule; "
            'say static_args=("mask", "shadow_ratio", "moment_dtype") to it'
        )


def check_shadow_ratio(value: object) -> None:
    """Raises an error unless the shadow's ratio is "v2.0", "v1.0" or a function of the scalar."""
    check_not_injected("shadow_ratio", value)
    if not callable(value) and value not in ("v2.0", "v1.0"):
        raise ValueError(
            f"Invalid shadow_ratio: {value!r}; it must be 'v2.0', 'v1.0' or a function of the scalar"
        )


def takes_extra_args(inner: Any) -> optax.GradientTransformationExtraArgs:
    """Returns an Optax transformation such that it takes a loss, or says that it is none."""
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        raise TypeError(
            f"A transformation of Optax is needed, such as optax.adam(1e-3), and this is {inner!r}"
        )
    return optax.with_extra_args_support(inner)


def check_params(params: Any) -> None:
    """Raises a `ValueError` if the parameters were not passed to `update`."""
    if params is None:
        raise ValueError(PARAMS_MISSING)


def check_loss(value: Any, dtype: Any, name: str = "value") -> jax.Array:
    """Returns the loss as an array of shape `()` in the emotion's dtype, its gradient stopped.

    Raises:
        LossMissingError: if there is no loss.
        TypeError: if the loss is not a real number.
        ValueError: if the loss is not a scalar.
    """
    if value is None:
        raise LossMissingError(LOSS_MISSING)
    if not isinstance(value, jax.Array):
        value = _host_array(value, name)
    if value.shape != ():
        raise ValueError(
            f"`{name}` must be a scalar, the loss of the whole step, and has the shape {value.shape}. "
            f"Reduce it first, for example with `{name}=jnp.mean(losses)`."
        )
    if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        raise TypeError(f"`{name}` must be the loss, a real number, and has the dtype {value.dtype}")
    with np.errstate(over="ignore"):  # What is too large for the dtype is infinite there.
        return jax.lax.stop_gradient(jnp.asarray(value.astype(dtype)))


def _host_array(value: Any, name: str) -> np.ndarray[Any, Any]:
    """Returns a number, or what NumPy can make an array of, in its own width."""
    try:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return np.asarray(float(value) if is_whole else value)
    except OverflowError:
        return np.asarray(np.inf)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be the loss, a real number, and is {value!r}") from error


def check_moment_dtype(moment_dtype: Any) -> Any:
    """Returns the dtype as JAX knows it here, or `None` for the default."""
    if moment_dtype is None:
        return None
    dtype = jax.dtypes.canonicalize_dtype(moment_dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"Invalid moment_dtype: {moment_dtype!r}; it must be a floating-point dtype")
    return dtype


def initial_value(learning_rate: Any) -> Any:
    """Returns the learning rate of the first step: the number itself, or a schedule's at step 0."""
    return learning_rate(jnp.zeros([], jnp.int32)) if isinstance(learning_rate, Callable) else learning_rate  # type: ignore[arg-type]


def check_divisor(learning_rate: Any) -> None:
    """Raises a `ValueError` if a learning rate that weight decay is divided by starts at 0."""
    try:
        with jax.ensure_compile_time_eval():
            start = float(initial_value(learning_rate))
    except jax.errors.ConcretizationTypeError:
        return  # Traced: its value is not known here.
    if start == 0.0:
        raise ValueError(
            "decoupled_weight_decay=True divides the weight decay by the learning rate that the "
            "optimizer is made with, and that is 0. Start with a positive learning rate, or use "
            "weight_decay_mode='absolute'."
        )
