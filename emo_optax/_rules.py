"""The rules: from a gradient to a direction. None knows of emotion or of a learning rate.

Where several rules are computed and one of them is chosen, `update` takes the extra argument `is_chosen`,
a bool of shape `[]`: where it is false, the rule's state stays as it is, and its updates mean nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emo_optax._emotion import wide_dtype
from emo_optax._shadow_effect import row_and_column_means
from emo_optax._validation import (
    check_decay_rate,
    check_kind,
    check_moment_dtype,
    check_not_negative,
    hyperparameter,
    is_number,
)


def _zeros(params: optax.Params, moment_dtype: Any) -> optax.Params:
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=moment_dtype or wide_dtype(p)), params)


def _average(
    values: optax.Updates, moments: optax.Updates, decay: Any, is_chosen: jax.Array | None = None
) -> optax.Updates:
    """Returns `(1 - decay) value + decay moment`, each in the value's dtype; the moment if not chosen."""

    def average(value: jax.Array, moment: jax.Array) -> jax.Array:
        rate = hyperparameter(decay, value.dtype)
        moment = moment.astype(value.dtype)
        mixed: jax.Array = (1.0 - rate) * value + rate * moment
        return mixed if is_chosen is None else jnp.where(is_chosen, mixed, moment)

    return jax.tree.map(average, values, moments)


def _interpolate(
    gradients: optax.Updates, before: optax.Updates, after: optax.Updates, b1: Any, b2: Any
) -> optax.Updates:
    r"""Returns :math:`(1-b_1)\,g + b_1 m`, where it can from the momentum after the step.

    .. math:: (1-b_1)\,g + b_1 m = \frac{(b_2-b_1)\,g + b_1 m'}{b_2}, \qquad m' = b_2 m + (1-b_2)\,g

    XLA on a CPU makes a loop for each array that a step returns. If the one of the parameters read
    the old momentum, which the one of the momentum overwrites, XLA would copy all of it first. With
    :math:`0 < b_2` and :math:`b_1 \le b_2` no term cancels another that it does not cancel anyway,
    so that both forms are equally exact. Decay rates that are traced are not known to be so.
    """
    is_known = is_number(b1) and is_number(b2) and b2 > 0.0 and b1 <= b2

    def interpolate(gradient: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
        if not is_known or old.dtype != new.dtype:  # What is kept in another dtype is not this one.
            mixed: jax.Array = _average(gradient, old, b1)
        elif b1 == b2:
            mixed = new
        else:
            share, rest = float(b1), float(b2) - float(b1)
            mixed = (1.0 / float(b2)) * (rest * gradient + share * new)
        return mixed

    return jax.tree.map(interpolate, gradients, before, after)


def _widened(updates: optax.Updates) -> optax.Updates:
    return jax.tree.map(lambda g: g.astype(wide_dtype(g)), updates)


def _map_leaves(
    function: Callable[..., tuple[Any, ...]], count: int, *hyperparameters: Any
) -> Callable[..., Any]:
    """Maps a function that returns `count` arrays over trees, to as many trees.

    Within jit JAX traces and lowers it once for all leaves of a shape and a dtype, and not for each
    of them. Not so where hyperparameters are arrays: the function is another one at every step then.
    """
    is_known = all(is_number(value) for value in hyperparameters)
    once = jax.jit(function) if is_known else function

    def map_trees(*trees: optax.Updates, is_chosen: jax.Array | None = None) -> tuple[optax.Updates, ...]:
        def at_leaf(*leaves: jax.Array) -> tuple[Any, ...]:
            is_traced = isinstance(leaves[0], jax.core.Tracer)
            return (once if is_traced else function)(*leaves, is_chosen)

        results = jax.tree.map(at_leaf, *trees)
        return tuple(
            jax.tree.map(lambda _, result, k=k: result[k], trees[0], results) for k in range(count)
        )

    return map_trees


def stored(moments: optax.Updates, before: optax.Updates, *, is_square: bool = False) -> optax.Updates:
    """Rounds moments to the dtypes that they are kept in.

    float16 has little range: what is too much for it becomes the most that it has, and a square does
    not become 0, by which the first moment would be divided, where it was not.
    """

    def store(new: jax.Array, old: jax.Array) -> jax.Array:
        check_kind("moment", old, jnp.floating, jnp.shape(old))
        if old.dtype == jnp.float16:
            most, least = 65504.0, 2.0**-24
            new = jnp.clip(new, -most, most)
            new = jnp.where(is_square & (new > 0.0), jnp.maximum(new, least), new)
        return new.astype(old.dtype)

    return jax.tree.map(store, moments, before)


class ScaleByUncorrectedAdamState(NamedTuple):
    """The moments: `mu` of the gradients, `nu` of their squares, trees like the parameters."""

    mu: optax.Updates
    nu: optax.Updates


def scale_by_uncorrected_adam(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    *,
    moment_dtype: Any | None = None,
) -> optax.GradientTransformation:
    r"""Rescales by Adam's moments without bias correction, the rule of EmoSens.

    .. math::
        m \leftarrow b_1 m + (1-b_1)\,g, \quad v \leftarrow b_2 v + (1-b_2)\,g^2, \quad
        u = \frac{m}{\sqrt{v} + \epsilon}

    Without the correction the first steps are large: 3.2 times the learning rate at the first, up
    to 6.6 times near the twelfth, under a constant gradient. (`optax.scale_by_adam` corrects.)

    Args:
        b1: decay rate of the first moment, in [0, 1).
        b2: decay rate of the second moment, in [0, 1).
        eps: what is added to the root, >= 0.
        moment_dtype: the moments' floating-point dtype; `None` for the parameters', float32 at least.

    Returns:
        A transformation whose updates have the gradients' dtype, float32 at least.

    Raises:
        ValueError: for a hyperparameter out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> rule = emo_optax.scale_by_uncorrected_adam()
        >>> updates, state = rule.update(jnp.asarray([2.0]), rule.init(jnp.ones(1)))
        >>> print(f"{updates[0]:.3f}")
        3.162

    Source: EmoSens v2.0 by muooon; Kingma and Ba, 2014.
    """
    check_decay_rate("b1", b1)
    check_decay_rate("b2", b2)
    check_not_negative("eps", eps)
    moment_dtype = check_moment_dtype(moment_dtype)

    def adam(g: jax.Array, m: jax.Array, v: jax.Array, is_chosen: jax.Array | None) -> tuple[Any, ...]:
        m = _average(g, m, b1, is_chosen)
        v = _average(jnp.square(g), v, b2, is_chosen)
        return m / (jnp.sqrt(v) + jnp.asarray(eps, v.dtype)), m, v

    rescale = _map_leaves(adam, 3, b1, b2, eps)

    def init_fn(params: optax.Params) -> ScaleByUncorrectedAdamState:
        return ScaleByUncorrectedAdamState(_zeros(params, moment_dtype), _zeros(params, moment_dtype))

    def update_fn(
        updates: optax.Updates,
        state: ScaleByUncorrectedAdamState,
        params: optax.Params | None = None,
        *,
        is_chosen: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByUncorrectedAdamState]:
        del params, extra_args
        updates, mu, nu = rescale(_widened(updates), state.mu, state.nu, is_chosen=is_chosen)
        return updates, ScaleByUncorrectedAdamState(
            stored(mu, state.mu), stored(nu, state.nu, is_square=True)
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class ScaleByLionState(NamedTuple):
    """The momentum `mu`, a tree like the parameters."""

    mu: optax.Updates


def scale_by_lion(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.99,
    *,
    moment_dtype: Any | None = None,
) -> optax.GradientTransformation:
    r"""Takes the sign of an interpolated momentum, the rule of EmoCats.

    .. math:: u = \operatorname{sign}((1-b_1)\,g + b_1 m), \quad m \leftarrow b_2 m + (1-b_2)\,g

    As `optax.scale_by_lion`, but each leaf's momentum has a dtype of its own, float32 at least: a
    bfloat16 momentum stops decaying.

    Args:
        b1: decay rate of the interpolation, in [0, 1).
        b2: decay rate of the momentum, in [0, 1).
        moment_dtype: the momentum's floating-point dtype; `None` for the parameters', float32 at
            least.

    Returns:
        A transformation whose updates have the gradients' dtype, float32 at least.

    Raises:
        ValueError: for a hyperparameter out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> rule = emo_optax.scale_by_lion()
        >>> updates, state = rule.update(jnp.asarray([2.0, 0.0, -3.0]), rule.init(jnp.ones(3)))
        >>> print(updates)
        [ 1.  0. -1.]

    Source: EmoCats v2.0 by muooon; Chen et al., 2023.
    """
    check_decay_rate("b1", b1)
    check_decay_rate("b2", b2)
    moment_dtype = check_moment_dtype(moment_dtype)

    def lion(g: jax.Array, m: jax.Array, is_chosen: jax.Array | None) -> tuple[Any, ...]:
        moved = _average(g, m, b2, is_chosen)
        return jnp.sign(_interpolate(g, m, moved, b1, b2)), moved

    take_sign = _map_leaves(lion, 2, b1, b2)

    def init_fn(params: optax.Params) -> ScaleByLionState:
        return ScaleByLionState(_zeros(params, moment_dtype))

    def update_fn(
        updates: optax.Updates,
        state: ScaleByLionState,
        params: optax.Params | None = None,
        *,
        is_chosen: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByLionState]:
        del params, extra_args
        updates, mu = take_sign(_widened(updates), state.mu, is_chosen=is_chosen)
        return updates, ScaleByLionState(stored(mu, state.mu))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class ScaleByMomentumState(NamedTuple):
    """The momentum `mu`, a tree like the parameters; `()` where there is none."""

    mu: optax.Updates


def _scale_by_momentum(
    direction: Callable[[jax.Array, jax.Array], jax.Array],
    b1: jax.typing.ArrayLike,
    b2: jax.typing.ArrayLike | None,
    moment_dtype: Any | None,
    *others: Any,
) -> optax.GradientTransformation:
    """Takes a direction from the interpolated momentum, the gradient and `others`; moves the momentum."""
    check_decay_rate("b1", b1)
    if b2 is not None:
        check_decay_rate("b2", b2)
    moment_dtype = check_moment_dtype(moment_dtype)

    def at_rest(g: jax.Array, is_chosen: jax.Array | None) -> tuple[Any, ...]:
        del is_chosen
        return (direction(_average(g, jnp.zeros_like(g), b1), g),)

    def moving(g: jax.Array, m: jax.Array, is_chosen: jax.Array | None) -> tuple[Any, ...]:
        moved = _average(g, m, b2, is_chosen)
        return direction(_interpolate(g, m, moved, b1, b2), g), moved

    direct = _map_leaves(at_rest, 1, b1, *others) if b2 is None else _map_leaves(moving, 2, b1, b2, *others)

    def init_fn(params: optax.Params) -> ScaleByMomentumState:
        return ScaleByMomentumState(() if b2 is None else _zeros(params, moment_dtype))

    def update_fn(
        updates: optax.Updates,
        state: ScaleByMomentumState,
        params: optax.Params | None = None,
        *,
        is_chosen: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByMomentumState]:
        del params, extra_args
        gradients = _widened(updates)
        if b2 is None:
            return direct(gradients)[0], state
        updates, mu = direct(gradients, state.mu, is_chosen=is_chosen)
        return updates, ScaleByMomentumState(stored(mu, state.mu))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def scale_by_cautious_sign(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike | None = 0.99,
    *,
    moment_dtype: Any | None = None,
) -> optax.GradientTransformation:
    r"""Takes the sign of an interpolated momentum where the gradient has the same, a rule of EmoNeco.

    .. math::
        w = (1-b_1)\,g + b_1 m, \quad
        u = \operatorname{sign}(w)\,[\,\operatorname{sign}(w) = \operatorname{sign}(g)\,], \quad
        m \leftarrow b_2 m + (1-b_2)\,g

    Args:
        b1: decay rate of the interpolation, in [0, 1).
        b2: decay rate of the momentum, in [0, 1); `None` keeps no momentum: m stays 0.
        moment_dtype: the momentum's floating-point dtype; `None` for the parameters', float32 at
            least.

    Returns:
        A transformation whose updates have the gradients' dtype, float32 at least.

    Raises:
        ValueError: for a hyperparameter out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> rule = emo_optax.scale_by_cautious_sign()
        >>> state = rule.init(jnp.ones(2))
        >>> for gradient in (jnp.asarray([9.0, 9.0]), jnp.asarray([0.1, -0.1])):
        ...     updates, state = rule.update(gradient, state)
        >>> print(updates)
        [1. 0.]

    Source: EmoNeco v2.0 by muooon; Liang et al., 2024, for the caution.
    """

    def direction(mixed: jax.Array, gradient: jax.Array) -> jax.Array:
        sign = jnp.sign(mixed)
        return jnp.where(sign == jnp.sign(gradient), sign, jnp.zeros([], sign.dtype))

    return _scale_by_momentum(direction, b1, b2, moment_dtype)


def scale_by_softsign(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike | None = 0.99,
    eps: jax.typing.ArrayLike = 1e-8,
    *,
    moment_dtype: Any | None = None,
) -> optax.GradientTransformation:
    r"""Softens an interpolated momentum and gives it the gradient's length, a rule of EmoNeco.

    .. math::
        w = (1-b_1)\,g + b_1 m, \quad
        u = \frac{w}{1 + |w|}\,(\lVert g \rVert_2 + \epsilon), \quad
        m \leftarrow b_2 m + (1-b_2)\,g

    The norm is that of each whole parameter, so the step grows with the parameter's size.

    Args:
        b1: decay rate of the interpolation, in [0, 1).
        b2: decay rate of the momentum, in [0, 1); `None` keeps no momentum: m stays 0.
        eps: what is added to the norm, >= 0.
        moment_dtype: the momentum's floating-point dtype; `None` for the parameters', float32 at
            least.

    Returns:
        A transformation whose updates have the gradients' dtype, float32 at least.

    Raises:
        ValueError: for a hyperparameter out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> rule = emo_optax.scale_by_softsign()
        >>> updates, state = rule.update(jnp.asarray([30.0, -40.0]), rule.init(jnp.ones(2)))
        >>> print(updates.round(3))
        [ 37.5 -40. ]

    Source: EmoNeco v2.0 by muooon.
    """
    check_not_negative("eps", eps)

    def direction(mixed: jax.Array, gradient: jax.Array) -> jax.Array:
        length = jnp.sqrt(jnp.sum(jnp.square(gradient))) + jnp.asarray(eps, gradient.dtype)
        return mixed / (1.0 + jnp.abs(mixed)) * length

    return _scale_by_momentum(direction, b1, b2, moment_dtype, eps)


class ScaleByFactorsState(NamedTuple):
    """Averages of the gradient's size: `row` of shape `[n, 1, ...]`, `column` of `[1, ...]`."""

    row: optax.Updates
    column: optax.Updates


def _scale_by_factors(
    b1: jax.typing.ArrayLike, eps: jax.typing.ArrayLike, moment_dtype: Any
) -> optax.GradientTransformation:
    """Rescales matrices, and tensors of more dimensions, by a row and a column average."""

    def roots(g: jax.Array, r: jax.Array, c: jax.Array, is_chosen: None = None) -> tuple[Any, ...]:
        del is_chosen
        if g.size == 0:  # A mean over nothing is NaN: an empty tensor's factors rest.
            return r.astype(g.dtype), c.astype(g.dtype)
        rows, columns = row_and_column_means(g, eps)
        return jnp.sqrt(rows).reshape(r.shape), jnp.sqrt(columns).reshape(c.shape)

    def move(
        g: jax.Array, row: jax.Array, column: jax.Array, r: jax.Array, c: jax.Array, is_chosen: Any
    ) -> tuple[Any, ...]:
        r, c = _average(row, r, b1, is_chosen), _average(column, c, b1, is_chosen)
        return g / (jnp.sqrt(r * c) + jnp.asarray(eps, g.dtype)), r, c

    def factors(g: jax.Array, r: jax.Array, c: jax.Array, is_chosen: None) -> tuple[Any, ...]:
        row, column = roots(g, r, c)
        return move(g, row, column, r, c, is_chosen)

    rescale = _map_leaves(factors, 3, b1, eps)
    measure = _map_leaves(roots, 2, eps)
    rescale_by = _map_leaves(move, 3, b1, eps)

    def no_roots(gradients: optax.Updates, *old: optax.Updates) -> tuple[optax.Updates, ...]:
        return tuple(
            jax.tree.map(lambda g, x: jnp.zeros_like(x, dtype=g.dtype), gradients, each) for each in old
        )

    def init_fn(params: optax.Params) -> ScaleByFactorsState:
        # Sums of zeros, and not zeros: over many devices they lie as the means will, like the parameters.
        zeros = _zeros(params, moment_dtype)
        return ScaleByFactorsState(
            jax.tree.map(lambda z: jnp.sum(z, axis=tuple(range(1, z.ndim)), keepdims=True), zeros),
            jax.tree.map(lambda z: jnp.sum(z, axis=0, keepdims=True), zeros),
        )

    def update_fn(
        updates: optax.Updates,
        state: ScaleByFactorsState,
        params: optax.Params | None = None,
        *,
        is_chosen: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByFactorsState]:
        del params, extra_args
        gradients = _widened(updates)
        if is_chosen is None:
            updates, row, column = rescale(gradients, *state)
        else:
            # One branch around what reads gradients twice and returns little; the states, which XLA
            # on a CPU copies around a branch, stay outside.
            means = jax.lax.cond(is_chosen, measure, no_roots, gradients, *state)
            updates, row, column = rescale_by(gradients, *means, *state, is_chosen=is_chosen)
        return updates, ScaleByFactorsState(stored(row, state.row), stored(column, state.column))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def is_matrix(tree: optax.Params) -> Any:
    """Says which leaves have 2 or more dimensions."""
    return jax.tree.map(lambda leaf: np.ndim(leaf) >= 2, tree)


def is_vector(tree: optax.Params) -> Any:
    """Says which leaves have fewer."""
    return jax.tree.map(lambda leaf: np.ndim(leaf) < 2, tree)


def scale_by_factored_moments(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    *,
    moment_dtype: Any | None = None,
) -> optax.GradientTransformation:
    r"""Rescales by averages over rows and columns, the rule of EmoAiry.

    For 2 or more dimensions, with means that keep dimensions:

    .. math::
        R &= \operatorname{mean}_{\text{all but first}} g^2 + \epsilon, \quad
        C = \operatorname{mean}_{\text{first}} g^2 + \epsilon \\
        r &\leftarrow b_1 r + (1-b_1)\sqrt{R}, \quad c \leftarrow b_1 c + (1-b_1)\sqrt{C}, \quad
        u = \frac{g}{\sqrt{r c} + \epsilon}

    For 0 or 1 dimensions it is `scale_by_uncorrected_adam`. The factors start at 0 and are not
    corrected: the first step is 10 times as long as the later ones. `b2` acts on vectors alone.

    Args:
        b1: decay rate of the factors, and of the vectors' first moment, in [0, 1).
        b2: decay rate of the vectors' second moment, in [0, 1).
        eps: what is added to the means and to the root, >= 0.
        moment_dtype: the factors' and moments' floating-point dtype; `None` for the parameters',
            float32 at least.

    Returns:
        A transformation whose updates have the gradients' dtype, float32 at least.

    Raises:
        ValueError: for a hyperparameter out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> rule = emo_optax.scale_by_factored_moments()
        >>> updates, state = rule.update(jnp.ones((2, 3)), rule.init(jnp.ones((2, 3))))
        >>> print(updates.round(3))
        [[10. 10. 10.]
         [10. 10. 10.]]

    Source: EmoAiry v2.0 by muooon; Shazeer and Stern, 2018, for the factors.
    """
    vectors = scale_by_uncorrected_adam(b1, b2, eps, moment_dtype=moment_dtype)
    matrices = _scale_by_factors(b1, eps, check_moment_dtype(moment_dtype))
    return optax.chain(optax.masked(matrices, is_matrix), optax.masked(vectors, is_vector))
