"""Checks of the arguments of users, made before anything is computed.

Numbers are checked where they are known: `optax.inject_hyperparams` passes traced arrays, whose values
nobody knows while a step is traced.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emo_optax._checks.errors import LOSS_MISSING, PARAMS_MISSING, LossMissingError
from emo_optax._checks.states import how_trees_differ
from emo_shared.choices import check_choice as check_choice
from emo_shared.choices import check_function as check_function
from emo_shared.choices import check_seed as check_seed
from emo_shared.choices import number_in
from emo_shared.eight_bit import EIGHT_BIT, check_may_be_coded


def is_number(value: object) -> bool:
    """Returns whether a value is a number that is known while a step is traced."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def hyperparameter(value: Any, dtype: Any) -> Any:
    """Returns a hyperparameter so that arithmetic with it stays in `dtype`."""
    # A number stays a Python number: `1 - b2` computed in float32 would be off by 1e-5. A NumPy double
    # would widen arrays, so it becomes a Python number, too.
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        return float(value)
    return jnp.asarray(value, dtype)


def check_precision(name: str, value: object, *, may_be_schedule: bool = False) -> None:
    """Raises a `TypeError` for a hyperparameter in a dtype of less than 32 bits.

    The nearest bfloat16 to 0.999 is 1.0, and the nearest float16 to 1e-8 is 0. The dtype is known under
    `jax.jit`, too, where the value is not. A learning rate and a weight decay, which may be schedules,
    may have 16 bits: they lose digits, but keep their order of magnitude.
    """
    dtype = getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        return
    if jnp.dtype(dtype).itemsize < (2 if may_be_schedule else 4):
        raise TypeError(
            f"Invalid {name}: the dtype {dtype} is not precise enough (bfloat16 rounds 0.999 to 1.0, and "
            "float16 rounds 1e-8 to 0). Give a Python float or a float32 array, or pass "
            "hyperparam_dtype=jnp.float32 to optax.inject_hyperparams, which otherwise uses the dtype of "
            "the parameters."
        )


def check_precisions(**values: object) -> None:
    """Like `check_precision`, for several hyperparameters, each under its name."""
    for name, value in values.items():
        if hasattr(value, "dtype"):
            check_precision(name, value)


def _known(name: str, value: Any, *, may_be_schedule: bool = False) -> Any:
    """Returns a number if it is known already, else `None`; raises an error if it is no number."""
    kinds = "a number, an array or a schedule" if may_be_schedule else "a number or an array"
    check_precision(name, value, may_be_schedule=may_be_schedule)
    if is_number(value):
        if isinstance(value, complex | np.complexfloating):
            raise TypeError(f"Invalid {name}: {value!r}; it must be a real number")
        return value
    if isinstance(value, jax.Array | np.ndarray):
        if value.shape != ():
            raise ValueError(f"Invalid {name}: an array of the shape {value.shape}; it must be one number")
        if not _is_real(value.dtype):
            raise TypeError(
                f"Invalid {name}: an array of the dtype {value.dtype}; it must be a real number"
            )
        is_here = isinstance(value, np.ndarray) or (
            not isinstance(value, jax.core.Tracer) and value.is_fully_addressable
        )
        return value.item() if is_here else None
    if may_be_schedule and callable(value):
        return None
    raise TypeError(f"Invalid {name}: {value!r}; it must be {kinds}{number_in(value)}")


def _is_real(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer))


def check_learning_rate(learning_rate: object) -> None:
    """Raises an error unless the learning rate is a schedule or finite and >= 0."""
    known = _known("learning_rate", learning_rate, may_be_schedule=True)
    if known is not None and not 0.0 <= known < math.inf:
        raise ValueError(f"Invalid learning rate: {learning_rate}; it must be finite and at least 0")


def check_decay_rate(name: str, value: object) -> None:
    """Raises an error unless a decay rate of an average is in [0, 1)."""
    known = _known(name, value)
    if known is not None and not 0.0 <= known < 1.0:
        raise ValueError(f"Invalid {name}: {value}; it must be in [0, 1)")


def check_factor(name: str, value: object) -> None:
    """Raises an error unless the weight of a new value in an average is in (0, 1]."""
    known = _known(name, value)
    if known is not None and not 0.0 < known <= 1.0:
        raise ValueError(f"Invalid {name}: {value}; it must be in (0, 1]")


def check_not_negative(name: str, value: object, *, may_be_schedule: bool = False) -> None:
    """Raises an error unless a number is finite and at least 0."""
    known = _known(name, value, may_be_schedule=may_be_schedule)
    if known is not None and not 0.0 <= known < math.inf:
        raise ValueError(f"Invalid {name}: {value}; it must be finite and at least 0")


def check_at_most_one(name: str, value: object) -> None:
    """Raises an error unless a share is in [0, 1]."""
    known = _known(name, value)
    if known is not None and not 0.0 <= known <= 1.0:
        raise ValueError(f"Invalid {name}: {value}; it must be in [0, 1]")


def check_order(low_name: str, low: object, high_name: str, high: object) -> None:
    """Raises a `ValueError` if the first of two numbers is above the second."""
    known_low, known_high = _known(low_name, low), _known(high_name, high)
    if known_low is not None and known_high is not None and known_low > known_high:
        raise ValueError(f"Invalid {low_name}: {low}; it must not be above {high_name}, {high}")


def check_max_steps(value: object) -> None:
    """Raises an error unless the length of a run is a whole number >= 1, or not known."""
    known = None if value is None else _known("ref_max_steps", value)
    if known is not None and not (1 <= known < 2**31 and known == int(known)):
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


def check_flag(name: str, value: object) -> None:
    """Raises a `TypeError` unless a switch is on or off."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"Invalid {name}: {value!r}; it must be True or False")


def check_bounds(name: str, value: Any) -> None:
    """Raises a `ValueError` unless bounds are `None` or a smaller and a larger number."""
    if value is None:
        return
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"Invalid {name}: {value!r}; it must be a pair, the least and the largest value")
    known = [_known(name, bound) for bound in value]
    if any(bound is not None and math.isnan(bound) for bound in known) or (
        None not in known and not known[0] <= known[1]
    ):
        raise ValueError(f"Invalid {name}: {value!r}; the first must not be above the second")


def check_not_injected(name: str, value: object) -> None:
    """Raises a `TypeError` for an array where optax.inject_hyperparams took a function for a schedule."""
    if isinstance(value, jax.Array):
        raise TypeError(
            f"Invalid {name}: an array. optax.inject_hyperparams treats every function as a schedule. Pass "
            'static_args=("mask", "shadow_ratio", "moment_dtype") to inject_hyperparams'
        )


def check_shadow_ratio(value: object) -> None:
    """Raises an error unless the shadow's ratio is "v2.0", "v1.0" or a function of the scalar."""
    check_not_injected("shadow_ratio", value)
    if not callable(value) and value not in ("v2.0", "v1.0"):
        raise ValueError(
            f"Invalid shadow_ratio: {value!r}; it must be 'v2.0', 'v1.0' or a function of the scalar"
        )


def checked_mask(mask: Any) -> Callable[[Any], Any]:
    """Returns a function from the parameters to a mask, which checks that the mask fits them."""
    check_not_injected("mask", mask)

    def check(tree: Any) -> Any:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not isinstance(leaf, bool | np.bool_) and getattr(leaf, "dtype", None) != jnp.bool_:
                place = jax.tree_util.keystr(path)
                raise TypeError(f"Invalid mask: mask{place} must be True or False, and is {leaf!r}")
            if jnp.shape(leaf):
                place = jax.tree_util.keystr(path)
                raise ValueError(
                    f"Invalid mask: mask{place} has the shape {jnp.shape(leaf)}; a mask has one boolean "
                    "for each parameter"
                )
        return tree

    if not callable(mask):
        check(mask)

    def mask_of(params: Any) -> Any:
        tree = check(mask(params) if callable(mask) else mask)
        try:
            jax.tree.map(lambda *_: None, tree, params)
        except (TypeError, ValueError) as error:
            problem = f"another tree structure than the parameters: {how_trees_differ(tree, params)}"
            raise ValueError(f"Invalid mask: it has {problem}") from error
        return tree

    return mask_of


def takes_extra_args(inner: Any) -> optax.GradientTransformationExtraArgs:
    """Returns an Optax transformation that takes a loss; raises an error for another object."""
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        raise TypeError(
            f"A transformation of Optax is needed, such as optax.adam(1e-3), and this is {inner!r}"
        )
    return optax.with_extra_args_support(inner)


def check_params(params: Any) -> None:
    """Raises a `ValueError` if the parameters were not passed to `update`."""
    if params is None:
        raise ValueError(PARAMS_MISSING)


def _checked_leaf(title: str, leaf: Any) -> Any:
    """Returns a leaf of a tree as an array; raises an error if it is no array of real numbers."""
    try:
        # `init` needs no more than shapes.
        array = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{title} must be an array of real numbers, and is {leaf!r}") from error
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ValueError(
            f"emo_optax does not support complex parameters, and {title} is complex. Store its real and "
            "imaginary parts as two real parameters."
        )
    return array


def checked_params(params: Any) -> Any:
    """Returns the parameters as arrays; Python's floats are parameters, too.

    Raises:
        TypeError: for a leaf that is no array of floating-point numbers.
        ValueError: for a complex leaf.
    """
    leaves = jax.tree.leaves(params)
    # Arrays of floating-point numbers are seen without a call for each leaf.
    if all(isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        return params

    def check(path: Any, leaf: Any) -> jax.Array:
        title = f"params{jax.tree_util.keystr(path)}"
        array: jax.Array = _checked_leaf(title, leaf)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(
                f"{title} has the dtype {array.dtype}, and a parameter must be of floating-point numbers. "
                "Leave it out of the optimized parameters, or make it a float."
            )
        return array

    return jax.tree_util.tree_map_with_path(check, params)


def checked_gradients(updates: Any, params: Any) -> Any:
    """Returns the gradients as arrays, each of which fits its parameter.

    Raises:
        TypeError: for a leaf that is no array of real numbers.
        ValueError: for a tree or a shape that differs from the parameters, or for a complex gradient.
    """
    structure: Any = jax.tree.structure(params)
    if jax.tree.structure(updates) != structure:
        raise ValueError(
            "The gradients have another tree structure than the parameters: "
            f"{how_trees_differ(updates, params)}. Pass the result of jax.grad for these parameters; if "
            "only some of them are trained, pass the same subset of gradients and parameters."
        )
    pairs = zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True)
    if all(
        isinstance(leaf, jax.Array)
        and jnp.issubdtype(leaf.dtype, jnp.floating)
        and leaf.shape == jnp.shape(param)
        for leaf, param in pairs
    ):
        return updates

    def check(path: Any, leaf: Any, param: jax.Array) -> jax.Array:
        place = jax.tree_util.keystr(path)
        if getattr(leaf, "dtype", None) == jax.dtypes.float0:
            problem = "has the dtype float0, which JAX gives to parameters of whole numbers"
            raise TypeError(f"The gradient of params{place} {problem}. Do not optimize this parameter")
        array: jax.Array = _checked_leaf(f"the gradient of params{place}", leaf)
        if array.dtype == jnp.bool_:
            raise TypeError(f"The gradient of params{place} must be of real numbers, and holds booleans")
        if array.shape != param.shape:
            raise ValueError(
                f"The gradient of params{place} has the shape {array.shape}, and the parameter "
                f"{param.shape}: they must be the same"
            )
        return array

    return jax.tree_util.tree_map_with_path(check, updates, params)


def check_loss(value: Any, dtype: Any, name: str = "value") -> jax.Array:
    """Returns the loss as an array of shape `()` in the emotion's dtype.

    The loss keeps its graph, so that a gradient through an update is complete.

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
    with np.errstate(over="ignore"):  # A number too large for the dtype becomes infinite.
        return jnp.asarray(value.astype(dtype))


def _host_array(value: Any, name: str) -> np.ndarray[Any, Any]:
    """Returns a number, or an object that NumPy can make an array of, in its own width."""
    # A time is an integer for NumPy.
    is_time = getattr(getattr(value, "dtype", None), "kind", "") == "m"
    if is_time or np.ma.is_masked(value):
        raise TypeError(f"`{name}` must be the loss, a real number, and is {value!r}")
    try:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return np.asarray(float(value) if is_whole else value)
    except OverflowError:
        return np.asarray(np.inf)
    except (TypeError, ValueError, RuntimeError) as error:  # PyTorch's tensors with a graph raise the last.
        raise TypeError(f"`{name}` must be the loss, a real number, and is {value!r}") from error


def check_moment_dtype(moment_dtype: Any, owner: str, *, may_be_8bit: bool = False) -> Any:
    """Returns the dtype as JAX knows it here, "8bit", or `None` for the default.

    Args:
        moment_dtype: the option.
        owner: the name of the rule or the optimizer that has the option.
        may_be_8bit: whether the moments of the rule may be kept in 8 bits.
    """
    if moment_dtype is None:
        return None
    if isinstance(moment_dtype, str) and moment_dtype == EIGHT_BIT:
        check_may_be_coded(owner, may_be=may_be_8bit)
        return EIGHT_BIT
    problem = f"Invalid moment_dtype: {moment_dtype!r}; it must be a floating-point dtype or {EIGHT_BIT!r}"
    check_not_injected("moment_dtype", moment_dtype)
    try:
        dtype = jax.dtypes.canonicalize_dtype(moment_dtype)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(problem) from error
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(problem)
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
