"""Averages of the gradient's size over rows and over columns."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emo_optax._checks.states import with_arrays
from emo_optax._checks.validation import check_moment_dtype
from emo_optax._pieces.shadow_effect import row_and_column_means
from emo_optax._rules.adam import ScaleByUncorrectedAdamState, scale_by_uncorrected_adam
from emo_optax._rules.moments import average, map_leaves, stored, widened, zero_moments


class ScaleByFactorsState(NamedTuple):
    """The averages of the factored rule: two trees like the parameters, so that shardings map onto them.

    Attributes:
        row: for a parameter of the shape `[n, m, ...]` the average over rows, of the shape `[n, 1, ...]`;
            for a parameter of 0 or 1 dimensions the first moment, in the parameter's shape.
        column: for a parameter of the shape `[n, m, ...]` the average over columns, of the shape
            `[1, m, ...]`; for a parameter of 0 or 1 dimensions the second moment, in the parameter's shape.
    """

    row: optax.Updates
    column: optax.Updates


def _rescale_by_factors(b1: jax.typing.ArrayLike, eps: jax.typing.ArrayLike) -> Callable[..., Any]:
    """Returns a function that rescales lists of matrices, and of tensors of more dimensions.

    The function takes gradients, row averages, column averages and `is_chosen`, and returns updates, row
    averages and column averages.
    """

    def roots(g: jax.Array, r: jax.Array, c: jax.Array, is_chosen: None = None) -> tuple[Any, ...]:
        del is_chosen
        if g.size == 0:  # A mean over nothing is NaN: an empty tensor's factors rest.
            return r.astype(g.dtype), c.astype(g.dtype)
        rows, columns = row_and_column_means(g, eps)
        return jnp.sqrt(rows).reshape(r.shape), jnp.sqrt(columns).reshape(c.shape)

    def move(
        g: jax.Array, row: jax.Array, column: jax.Array, r: jax.Array, c: jax.Array, is_chosen: Any
    ) -> tuple[Any, ...]:
        r, c = average(row, r, b1, is_chosen), average(column, c, b1, is_chosen)
        return g / (jnp.sqrt(r * c) + jnp.asarray(eps, g.dtype)), r, c

    def factors(g: jax.Array, r: jax.Array, c: jax.Array, is_chosen: None) -> tuple[Any, ...]:
        row, column = roots(g, r, c)
        return move(g, row, column, r, c, is_chosen)

    rescale = map_leaves(factors, 3, b1, eps)
    measure = map_leaves(roots, 2, eps)
    rescale_by = map_leaves(move, 3, b1, eps)

    def no_roots(gradients: optax.Updates, *old: optax.Updates) -> tuple[optax.Updates, ...]:
        return tuple(
            jax.tree.map(lambda g, x: jnp.zeros_like(x, dtype=g.dtype), gradients, each) for each in old
        )

    def update_fn(
        gradients: list[jax.Array], row: list[jax.Array], column: list[jax.Array], is_chosen: Any
    ) -> tuple[Any, Any, Any]:
        if is_chosen is None:
            updates, new_row, new_column = rescale(gradients, row, column)
        else:
            # One branch around the operations that read gradients twice and return little. The states stay
            # outside, because XLA on a CPU copies the states of a branch.
            means = jax.lax.cond(is_chosen, measure, no_roots, gradients, row, column)
            updates, new_row, new_column = rescale_by(gradients, *means, row, column, is_chosen=is_chosen)
        return updates, stored(new_row, row), stored(new_column, column)

    return update_fn


def init_factors(params: optax.Params, moment_dtype: Any) -> tuple[optax.Params, optax.Params]:
    """Returns averages over rows and over columns before the first gradient; for vectors zeros."""

    # Sums of zeros, and not zeros: over many devices they have the sharding of the later means, like the
    # parameters.
    def mean_of(zero: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        return zero if zero.ndim < 2 else jnp.sum(zero, axis=axes, keepdims=True)

    row, column = zero_moments(params, moment_dtype), zero_moments(params, moment_dtype)
    return (
        jax.tree.map(lambda zero: mean_of(zero, tuple(range(1, zero.ndim))), row),
        jax.tree.map(lambda zero: mean_of(zero, (0,)), column),
    )


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
        eps: the number added to the means and to the root, >= 0.
        moment_dtype: the factors' and moments' floating-point dtype; `None` for the parameters' dtype,
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
    moment_dtype = check_moment_dtype(moment_dtype, "scale_by_factored_moments")
    vectors = scale_by_uncorrected_adam(b1, b2, eps, moment_dtype=moment_dtype)
    rescale = _rescale_by_factors(b1, eps)

    def init_fn(params: optax.Params) -> ScaleByFactorsState:
        return ScaleByFactorsState(*init_factors(params, moment_dtype))

    def update_fn(
        updates: optax.Updates,
        state: ScaleByFactorsState,
        params: optax.Params | None = None,
        *,
        is_chosen: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByFactorsState]:
        del params, extra_args
        state = with_arrays(state, init_fn, updates)
        leaves: list[jax.Array]
        structure: Any
        leaves, structure = jax.tree.flatten(widened(updates))
        trees = [leaves, structure.flatten_up_to(state.row), structure.flatten_up_to(state.column)]
        of_matrix = [leaf.ndim >= 2 for leaf in leaves]

        def part(wanted: bool) -> list[list[jax.Array]]:
            return [
                [leaf for leaf, is_one in zip(tree, of_matrix, strict=True) if is_one == wanted]
                for tree in trees
            ]

        matrices = rescale(*part(True), is_chosen)
        gradients, first, second = part(False)
        moments = ScaleByUncorrectedAdamState(first, second)
        rest, moments = vectors.update(gradients, moments, None, is_chosen=is_chosen)

        def together(of_matrices: Any, of_vectors: Any) -> Any:
            sources = {True: iter(of_matrices), False: iter(of_vectors)}
            return jax.tree.unflatten(structure, [next(sources[is_one]) for is_one in of_matrix])

        updates, row, column = map(together, matrices, (rest, *moments))
        return updates, ScaleByFactorsState(row, column)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
