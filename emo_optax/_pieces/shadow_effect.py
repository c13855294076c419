"""Shadow-effect: before the update, which elements to move, and how far."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.states import with_arrays
from emo_optax._checks.validation import (
    check_function,
    check_not_negative,
    is_number,
    takes_extra_args,
)
from emo_optax._pieces.emotion import EmotionState, shared_scalar, wide_dtype

Keep = Callable[[jax.Array, jax.Array], jax.Array]
"""A gradient and the tolerance theta (1 + |s|), a scalar of its dtype, to the elements that move."""


def keep_elements(gradient: jax.Array, tolerance: jax.Array) -> jax.Array:
    r"""Keeps an element where its gradient is not negligible.

    .. math:: |g|^{1/3} \ge \theta\,(1 + |s|)

    Args:
        gradient: the gradient of one parameter, any shape, floating point.
        tolerance: theta (1 + |s|), shape `[]`, same dtype.

    Returns:
        Booleans in the gradient's shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from emo_optax import keep_elements
        >>> print(keep_elements(jnp.asarray([0.0, 1e-13, 2e-12]), jnp.asarray(1e-4)))
        [False False  True]

    Source: EmoSens and EmoCats v2.0 by muooon, with the cube on the other side, which saves a root
    for every element.
    """
    return _is_at_least(gradient, tolerance * tolerance * tolerance)


def _is_at_least(gradient: jax.Array, bound: jax.Array) -> jax.Array:
    return bound <= jnp.abs(gradient)  # In this order, see `scale_by_emotion`.


@jax.jit  # A separate function: traced once for all leaves of a shape, and not for each leaf.
def _stop_small(update: jax.Array, gradient: jax.Array, bound: jax.Array) -> jax.Array:
    return jax.lax.select(_is_at_least(gradient, bound), update, jnp.zeros_like(update))


def keep_rows_and_columns(eps: jax.typing.ArrayLike = 1e-8) -> Keep:
    r"""Makes a test that keeps whole rows and columns, or an element of a vector.

    .. math::
        R^{1/3} > \theta\,(1+|s|) \text{ and } C^{1/3} > \theta\,(1+|s|), \qquad
        R = \operatorname{mean}_{\text{all but first}} g^2 + \epsilon, \quad
        C = \operatorname{mean}_{\text{first}} g^2 + \epsilon

    With 0 or 1 dimensions it is :math:`(g^2)^{1/3} > \theta\,(1+|s|)`. With the default `eps` and
    `theta` the test of rows and columns never fails: :math:`(10^{-8})^{1/3} = 2.2 \cdot 10^{-3}`.

    Args:
        eps: the number added to the means, >= 0.

    Returns:
        A function of a gradient and of the tolerance, for `filter_by_emotion`.

    Raises:
        ValueError: for an `eps` below 0.
        TypeError: for a number in a dtype of less than 32 bits, which is too coarse for it.

    Example:
        >>> import jax.numpy as jnp
        >>> from emo_optax import keep_rows_and_columns
        >>> keep = keep_rows_and_columns(eps=0.0)
        >>> print(keep(jnp.asarray([[0.0, 1.0], [0.0, 1.0]]), jnp.asarray(1e-4)))
        [[False  True]
         [False  True]]

    Source: EmoAiry v2.0 by muooon.
    """
    check_not_negative("eps", eps)
    return _KeepRowsAndColumns(eps)


@dataclasses.dataclass(frozen=True)
class _KeepRowsAndColumns:
    """The test that `keep_rows_and_columns` makes."""

    eps: Any

    def __call__(self, gradient: jax.Array, tolerance: jax.Array) -> jax.Array:
        if gradient.ndim < 2:
            return jnp.abs(gradient) > tolerance * jnp.sqrt(tolerance)
        if gradient.size == 0:
            return jnp.zeros(gradient.shape, jnp.bool_)
        rows, columns = row_and_column_means(gradient, self.eps)
        bound = tolerance * tolerance * tolerance
        # The result of a row is for the whole row. The columns already have the right shape.
        return (rows > bound).reshape(-1, *(1,) * (gradient.ndim - 1)) & (columns > bound)

    def keeps_all(self, gradient: jax.Array, theta: Any) -> bool:
        """Returns whether all elements move whatever the gradient and the emotion are.

        A mean is at least 0, and the tolerance at most 2 theta; the thousandth is for roundings.
        """
        if gradient.ndim < 2 or not (is_number(self.eps) and is_number(theta)):
            return False
        return float(self.eps) > 1.001 * (2.0 * float(theta)) ** 3


def row_and_column_means(gradient: jax.Array, eps: Any) -> tuple[jax.Array, jax.Array]:
    """Returns eps + the means of the squares over all axes but the first, and over the first axis."""
    # Written differently from the squares in the rule, on purpose: XLA on a CPU merges equal expressions
    # and stores the result as a full array. Different expressions are summed while the gradient is read.
    size = jnp.abs(gradient)
    floor = jnp.asarray(eps, gradient.dtype)
    rows = floor - jnp.mean(size * -size, axis=tuple(range(1, gradient.ndim)))
    columns = floor - jnp.mean(gradient * -gradient, axis=0)
    return rows, columns


class FilterByEmotionState(NamedTuple):
    """The options of the filter, for `get_metrics`, and the state of the inner transformation.

    In the members and in `emotional` the array of numbers of the emotion ends with `theta` and eps, and the
    fields here are `()`.

    Attributes:
        theta: the threshold of the last step, shape `[]`, or `()`.
        keep: which elements move, by one name: `{"elements": ()}` for `keep_elements`,
            `{"rows_and_columns": eps}` with eps of shape `[]` or `()`, or `{"custom": ()}`.
        inner_state: the state of the inner transformation.
    """

    theta: jax.Array | tuple[()]
    keep: dict[str, Any]
    inner_state: optax.OptState


def _keep_by_name(keep: Keep) -> dict[str, Any]:
    """Returns the name of a test, and the number that the test was made with or `()`."""
    if isinstance(keep, _KeepRowsAndColumns):
        return {"rows_and_columns": keep.eps}
    return {"elements" if keep is keep_elements else "custom": ()}


def _like(before: Any, value: Any) -> Any:
    """Returns a hyperparameter as a new array with the dtype and shape of the previous step."""
    if type(value) is float or is_number(value):
        return jnp.full_like(before, value)
    return jnp.array(value, before.dtype)


def filter_by_emotion(
    inner: optax.GradientTransformation,
    theta: jax.typing.ArrayLike = 1e-4,
    *,
    keep: Keep = keep_elements,
) -> optax.GradientTransformationExtraArgs:
    r"""Lets the update of `inner` through only where the gradient is not negligible.

    .. math:: u \leftarrow u \cdot [\,|g|^{1/3} \ge \theta\,(1+|s|)\,]

    The state of `inner` sees the whole gradient. With the default `theta` only elements under 1e-12
    to 8e-12 in size are stopped: in float32 that is, in practice, exact zeros.

    Args:
        inner: the transformation whose update is filtered; it receives the gradient.
        theta: the threshold on the cube root of the gradient's size, >= 0; 0 filters nothing.
        keep: which elements move, `keep_elements` or `keep_rows_and_columns(eps)`.

    Returns:
        A transformation for inside of `share_emotion` or `emotional`.

    Raises:
        ValueError: for a hyperparameter out of its range.
        EmotionMissingError: from `update`, outside of `share_emotion` and `emotional`.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> piece = emo_optax.filter_by_emotion(optax.sgd(0.5, momentum=0.9))
        >>> optimizer = emo_optax.share_emotion(piece)
        >>> params = jnp.ones(2)
        >>> state = optimizer.init(params)
        >>> for gradient in (jnp.ones(2), jnp.asarray([1.0, 0.0])):
        ...     updates, state = optimizer.update(gradient, state, params, value=1.0)
        >>> print(updates)  # the second element rests, although it has momentum
        [-0.95  0.  ]

    Source: EmoSens v2.0 by muooon.
    """
    return filter_with_options(inner, theta, keep, in_emotion=False)


def options_of_filter(theta: jax.typing.ArrayLike, keep: Keep) -> list[jax.typing.ArrayLike]:
    """Returns the options of a filter that are numbers, for the numbers of an emotion: theta, and eps."""
    eps = [eps for eps in _keep_by_name(keep).values() if not isinstance(eps, tuple)]
    return [theta, *eps]


def with_options(state: FilterByEmotionState, options: jax.Array) -> FilterByEmotionState:
    """Returns the state of a filter with the options that an emotion has."""
    keep = dict.fromkeys(state.keep, options[..., -1]) if "rows_and_columns" in state.keep else state.keep
    return state._replace(theta=options[..., 0], keep=keep)


def filter_with_options(
    inner: optax.GradientTransformation, theta: jax.typing.ArrayLike, keep: Keep, *, in_emotion: bool
) -> optax.GradientTransformationExtraArgs:
    """As `filter_by_emotion`; `in_emotion` says whether the emotion keeps `options_of_filter`."""
    check_not_negative("theta", theta)
    check_function("keep", keep)
    inner = takes_extra_args(inner)
    keep_by_name = _keep_by_name(keep)

    def init_fn(params: optax.Params) -> FilterByEmotionState:
        dtype = wide_dtype(params)
        if in_emotion:
            return FilterByEmotionState((), dict.fromkeys(keep_by_name, ()), inner.init(params))
        return FilterByEmotionState(
            theta=jnp.array(theta, dtype),
            keep={
                name: eps if isinstance(eps, tuple) else jnp.array(eps, dtype)
                for name, eps in keep_by_name.items()
            },
            inner_state=inner.init(params),
        )

    def update_fn(
        updates: optax.Updates,
        state: FilterByEmotionState,
        params: optax.Params | None = None,
        *,
        emotion: EmotionState | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, FilterByEmotionState]:
        state = with_arrays(state, init_fn, updates if params is None else params)
        scalar = shared_scalar(emotion)
        tolerance = jnp.asarray(theta, scalar.dtype) * (1.0 + jnp.abs(scalar))
        gradients = updates
        updates, inner_state = inner.update(
            gradients, state.inner_state, params, emotion=emotion, **extra_args
        )

        cubes: dict[Any, jax.Array] = {}

        def let_through(update: jax.Array, gradient: jax.Array) -> jax.Array:
            if isinstance(keep, _KeepRowsAndColumns) and keep.keeps_all(gradient, theta):
                return update
            dtype = jnp.float32 if gradient.dtype == jnp.float32 else wide_dtype(gradient)
            if keep is keep_elements:
                wide = gradient.astype(dtype)
                if dtype not in cubes:  # The cube is taken once, and not again for every leaf.
                    narrow = tolerance.astype(dtype)
                    cubes[dtype] = narrow * narrow * narrow
                stopped: jax.Array = _stop_small(update, wide, cubes[dtype])
                return stopped
            kept = keep(gradient.astype(dtype), tolerance.astype(dtype))
            return jax.lax.select(kept, update, jnp.zeros_like(update))

        updates = jax.tree.map(let_through, updates, gradients)
        if in_emotion:
            return updates, state._replace(inner_state=inner_state)
        theta_now = _like(state.theta, theta)
        keep_now = {
            name: before if isinstance(before := state.keep[name], tuple) else _like(before, eps)
            for name, eps in keep_by_name.items()
        }
        return updates, FilterByEmotionState(theta_now, keep_now, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class ScaleByEmotionState(NamedTuple):
    """An empty state, which tells `get_metrics` that updates are scaled."""


def scale_by_emotion() -> optax.GradientTransformationExtraArgs:
    r"""Scales the updates by how calm the loss is.

    .. math:: u \leftarrow (1 - |s|)\,u

    Returns:
        A transformation for an `optax.chain` inside of `share_emotion` or `emotional`.

    Raises:
        EmotionMissingError: from `update`, outside of `share_emotion` and `emotional`.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> pieces = optax.chain(optax.sgd(1.0), emo_optax.scale_by_emotion())
        >>> optimizer = emo_optax.share_emotion(pieces)
        >>> params = jnp.ones(2)
        >>> state = optimizer.init(params)
        >>> for loss in (2.0, 1.0):
        ...     updates, state = optimizer.update(params, state, params, value=loss)
        >>> print(updates.round(3))
        [-0.104 -0.104]

    Source: EmoSens v2.0 by muooon.
    """

    def init_fn(params: optax.Params) -> ScaleByEmotionState:
        del params
        return ScaleByEmotionState()

    def update_fn(
        updates: optax.Updates,
        state: ScaleByEmotionState,
        params: optax.Params | None = None,
        *,
        emotion: EmotionState | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByEmotionState]:
        del params, extra_args
        scale = step_scale(shared_scalar(emotion))
        # The scale is the left factor, so that all leaves have the same loop and XLA on a CPU compiles it
        # once: XLA compares expressions with the order of their factors.
        return jax.tree.map(lambda update: scale.astype(update.dtype) * update, updates), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def step_scale(scalar: jax.Array) -> jax.Array:
    """Returns 1 - |s|, the factor of a step, for an emotion scalar in [-1, 1].

    Args:
        scalar: the emotion scalar s in [-1, 1], a floating-point array of any shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from emo_optax import step_scale
        >>> print(step_scale(jnp.asarray(-0.75)))
        0.25
    """
    return 1.0 - jnp.abs(scalar)
