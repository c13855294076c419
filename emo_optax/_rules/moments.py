"""Helpers for moments: averages of a gradient that a rule keeps from one step to the next."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.states import check_kinds
from emo_optax._checks.validation import hyperparameter, is_number
from emo_optax._pieces.emotion import real_dtype
from emo_optax._rules import eight_bit
from emo_shared.eight_bit import EIGHT_BIT, LARGEST_BESIDE_SQUARE, SIGNED, UNSIGNED, is_coded


def zero_moments(params: optax.Params, moment_dtype: Any, *, is_square: bool = False) -> optax.Params:
    """Returns moments of zeros: arrays like the parameters, or where "8bit" says so, `CodedMoment`s."""
    if moment_dtype != EIGHT_BIT:
        return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=moment_dtype or real_dtype(p)), params)

    def zeros(p: jax.Array) -> Any:
        if is_coded(p.size):
            return eight_bit.zeros(p, UNSIGNED if is_square else SIGNED)
        return jnp.zeros_like(p, dtype=real_dtype(p))

    return jax.tree.map(zeros, params)


def decoded(moments: optax.Updates, *, is_square: bool = False) -> optax.Updates:
    """Returns moments as arrays: moments in 8 bits as float32, other moments unchanged."""
    table = UNSIGNED if is_square else SIGNED

    def decode(moment: Any) -> Any:
        return eight_bit.decode(moment, table) if eight_bit.is_coded_moment(moment) else moment

    return jax.tree.map(decode, moments, is_leaf=eight_bit.is_coded_moment)


def average(
    value: jax.Array, moment: jax.Array, decay: Any, is_chosen: jax.Array | None = None
) -> jax.Array:
    """Returns `(1 - decay) value + decay moment`, in the value's dtype; the moment if not chosen."""
    rate = decay if type(decay) is float else hyperparameter(decay, value.dtype)
    moment = moment.astype(value.dtype)
    mixed: jax.Array = (1.0 - rate) * value + rate * moment
    return mixed if is_chosen is None else jnp.where(is_chosen, mixed, moment)


def interpolate(
    gradients: optax.Updates, before: optax.Updates, after: optax.Updates, b1: Any, b2: Any
) -> optax.Updates:
    r"""Returns :math:`(1-b_1)\,g + b_1 m`, if possible from the momentum after the step.

    .. math:: (1-b_1)\,g + b_1 m = \frac{(b_2-b_1)\,g + b_1 m'}{b_2}, \qquad m' = b_2 m + (1-b_2)\,g

    XLA on a CPU makes a loop for each array that a step returns. If the loop of the parameters read the old
    momentum, which the loop of the momentum overwrites, XLA would first copy the whole momentum. For
    :math:`0 < b_2` and :math:`b_1 \le b_2` this form is as exact as the direct form. For traced decay rates
    this is unknown.
    """
    is_known = is_number(b1) and is_number(b2) and b2 > 0.0 and b1 <= b2

    def mix(gradient: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
        if not is_known or old.dtype != new.dtype:  # The stored momentum is rounded.
            mixed: jax.Array = average(gradient, old, b1)
        elif b1 == b2:
            mixed = new
        else:
            share, rest = float(b1), float(b2) - float(b1)
            mixed = (1.0 / float(b2)) * (rest * gradient + share * new)
        return mixed

    return jax.tree.map(mix, gradients, before, after)


def widened(updates: optax.Updates) -> optax.Updates:
    """Returns gradients in the dtype of the computation; gradients in float32 unchanged."""
    leaves = jax.tree.leaves(updates)
    if all(isinstance(g, jax.Array) and g.dtype == jnp.float32 and not g.weak_type for g in leaves):
        return updates
    return jax.tree.map(lambda g: g.astype(real_dtype(g)), updates)


def map_leaves(
    function: Callable[..., tuple[Any, ...]], count: int, *hyperparameters: Any
) -> Callable[..., Any]:
    """Maps a function that returns `count` arrays over trees, to as many trees.

    Within jit JAX traces and lowers the function once for all leaves of a shape and a dtype, and not for
    each leaf. If hyperparameters are arrays, it is a new function at every step, and JAX traces it for each
    leaf.
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
    """Rounds moments to the dtypes that they are kept in, or encodes them.

    float16 has a small range: a larger value becomes its largest value, and a square does
    not become 0, by which the first moment would be divided, where it was not.
    """
    news, olds = jax.tree.leaves(moments), jax.tree.leaves(before)
    wide = (jnp.float32, jnp.float64)
    # Most moments are kept in the dtype that they are computed in. A moment in 8 bits has two leaves.
    if len(news) == len(olds) and all(
        new.dtype in wide
        and not getattr(new, "weak_type", False)
        and hasattr(old, "dtype")
        and new.dtype == old.dtype
        for new, old in zip(news, olds, strict=True)
    ):
        return moments

    kept = jax.tree.leaves(before, is_leaf=eight_bit.is_coded_moment)
    arrays = [old for old in kept if not eight_bit.is_coded_moment(old)]
    check_kinds([("moment", old, jnp.floating, jnp.shape(old)) for old in arrays])

    def store(new: jax.Array, old: Any) -> Any:
        if eight_bit.is_coded_moment(old):
            return eight_bit.encode(new, UNSIGNED if is_square else SIGNED)
        if old.dtype == jnp.float16:
            most, least = 65504.0, 2.0**-24
            new = jnp.clip(new, -most, most)
            new = jnp.where(is_square & (new > 0.0), jnp.maximum(new, least), new)
        return new.astype(old.dtype)

    return jax.tree.map(store, moments, before)


def _bounded(moment: jax.Array, old: Any) -> jax.Array:
    """Returns a first moment, limited if it is stored in 8 bits, as its second moment is."""
    if not eight_bit.is_coded_moment(old):
        return moment
    return jnp.clip(moment, -LARGEST_BESIDE_SQUARE, LARGEST_BESIDE_SQUARE)


def step_and_store(
    step: Callable[..., tuple[optax.Updates, ...]],
    gradients: optax.Updates,
    moments: tuple[optax.Updates, ...],
    are_squares: tuple[bool, ...] = (False,),
) -> tuple[optax.Updates, tuple[optax.Updates, ...]]:
    """Takes the step of a rule; returns the updates, and the moments as they are kept.

    With moments in 8 bits, leaves are stepped one after the other. Otherwise XLA on a CPU would hold the
    decoded moments of all leaves at the same time, more bytes than the codes save.

    Args:
        step: from gradients and moments, trees of arrays, to updates and moved moments.
        gradients: the gradients.
        moments: the moments as they are kept, each a tree like the gradients.
        are_squares: for each tree of moments, whether it has averages of squares.
    """
    # Only codes are uint8.
    if not any(getattr(leaf, "dtype", None) == jnp.uint8 for leaf in jax.tree.leaves(moments)):
        updates, *moved = step(gradients, *moments)
        pairs = zip(moved, moments, are_squares, strict=True)
        return updates, tuple(stored(new, old, is_square=is_square) for new, old, is_square in pairs)
    structure: Any = jax.tree.structure(gradients)
    before: jax.Array | None = None
    results = []
    for gradient, *own in zip(*map(structure.flatten_up_to, (gradients, *moments)), strict=True):
        own = [eight_bit.after(moment, before) for moment in own]
        wide = [decoded(old, is_square=square) for old, square in zip(own, are_squares, strict=True)]
        update, *moved = step(gradient, *wide)
        if any(are_squares):
            moved = [
                new if square else _bounded(new, old)
                for new, old, square in zip(moved, own, are_squares, strict=True)
            ]
        trios = zip(moved, own, are_squares, strict=True)
        news = [stored(new, old, is_square=is_square) for new, old, is_square in trios]
        scales = [new.scales[0] for new in news if eight_bit.is_coded_moment(new)]
        before = sum(scales[1:], scales[0]) if scales else before
        results.append((update, *news))
    updates, *moved = (structure.unflatten(column) for column in zip(*results, strict=True))
    return updates, tuple(moved)
