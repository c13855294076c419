"""Autopilot: any Optax optimizer, with steps whose length the losses and gradients steer."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.validation import (
    check_flag,
    check_loss,
    check_not_negative,
    check_order,
    check_params,
    takes_extra_args,
)
from emo_optax._pieces.averaged_weights import average_rate, init_average, move_average
from emo_optax._pieces.ceiling import step_ceiling
from emo_optax._pieces.dtypes import keep_dtypes
from emo_optax._pieces.emotion import wide_dtype
from emo_optax._pieces.pilot import (
    PilotState,
    SteeredState,
    check_average_of,
    choose_finite,
    init_pilot,
    skip,
    steer,
    whole_sums,
    with_agreement,
)
from emo_optax._pieces.relative_emotion import root
from emo_optax._pieces.replicas import AxisName, average_over_replicas, check_axis_name
from emo_optax._pieces.sums import sums_of

USUAL_SIZE = 0.3
"""The usual root mean square of Adam's direction, for which `step_ceiling` was measured."""


def autopilot(
    inner: optax.GradientTransformation,
    *,
    min_courage: jax.typing.ArrayLike = 0.03,
    max_courage: jax.typing.ArrayLike = 100.0,
    gate_limit: jax.typing.ArrayLike = 2.5,
    average: bool = True,
    axis_name: AxisName = None,
    shard_axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Steers the length of the steps of any optimizer, as `emo_pilot` steers its own.

    .. math::
        u &= inner(g\,\min(1,\, 2.5\,N / \lVert g \rVert)) \\
        p &\leftarrow p + k\,\min\Bigl(1,\, \frac{0.3\,C}{\mathrm{RMS}(u)}\Bigr)\,u, \qquad
            C = 0.08\,\min(0.1, \max(0.02, \mathrm{RMS}(p)))

    `gate`, `move_courage` and `step_ceiling` define N, k and C. The agreement is the cosine of the gradient
    and the last update of `inner`, and moves the courage of the next step; the state keeps the last update.
    A step whose loss or gradient is not finite is skipped, and the state of `inner` stays as it was. A
    parameter whose update by `inner` is not finite stays as it is in this step.

    Args:
        inner: the optimizer, learning rate included; weight decay in it is scaled with the step.
        min_courage: the least courage, >= 0.
        max_courage: the largest courage, >= `min_courage`; with 1 no step is longer than the step of
            `inner`.
        gate_limit: how many times its running average the norm of a gradient may be, >= 0.
        average: whether to keep averaged weights, which `eval_params` finds in the state.
        axis_name: the mapped axes over which the loss is averaged, a name, a tuple of names or `None`; for
            replicas under `jax.shard_map` or `jax.pmap`, whose gradients you average yourself.
        shard_axis_name: the mapped axes over which parameters are split, as in `emo_pilot`.

    Returns:
        A transformation whose `update(grads, state, params, value=loss)` takes the loss at `params`.

    Raises:
        ValueError: for an option out of its range; from `update`, without `params` or for a loss that is
            not a scalar.
        LossMissingError: from `update`, without a loss.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = emo_optax.autopilot(optax.sgd(1e-3, momentum=0.9))
        >>> params = jnp.asarray([1.0, -2.0])
        >>> state, update = optimizer.init(params), jax.jit(optimizer.update)
        >>> for _ in range(200):
        ...     loss, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
        ...     updates, state = update(grads, state, params, value=loss)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(loss < 1.0)  # SGD alone with this learning rate would be at 2.3.
        True

    Source: ours.
    """
    check_not_negative("min_courage", min_courage)
    check_not_negative("max_courage", max_courage)
    check_order("min_courage", min_courage, "max_courage", max_courage)
    check_not_negative("gate_limit", gate_limit)
    check_flag("average", average)
    check_axis_name(axis_name)
    check_axis_name(shard_axis_name)
    inner = takes_extra_args(inner)

    def init_fn(params: optax.Params) -> SteeredState:
        last = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=wide_dtype(p)), params)
        start = init_average(params) if average else ()
        return SteeredState(init_pilot(wide_dtype(params)), inner.init(params), last, start)

    def update_fn(
        updates: optax.Updates,
        state: SteeredState,
        params: optax.Params,
        *,
        value: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SteeredState]:
        check_params(params)
        old = state.pilot
        dtype = old.norm.dtype
        loss = average_over_replicas(check_loss(value, dtype), axis_name)
        gradients = jax.tree.map(lambda g, u: g.astype(u.dtype), updates, state.last)

        def products(g: jax.Array, u: jax.Array) -> tuple[jax.Array, ...]:
            return g * g, -(g * u), u * u  # The last update points down.

        leaves = zip(jax.tree.leaves(gradients), jax.tree.leaves(state.last), strict=True)
        each = [jnp.stack(sums_of(products, g, u)).astype(dtype) for g, u in leaves]
        weights = jax.tree.map(lambda p: p.astype(wide_dtype(p)), params)
        total, means = whole_sums(each, weights, dtype, shard_axis_name)
        pilot, is_finite = steer(
            old,
            loss,
            total[0],
            limit=gate_limit,
            min_courage=min_courage,
            max_courage=max_courage,
            learning_rate=0.0,  # No warm-up: the rule of `inner` may need a step of another size.
        )
        pilot = with_agreement(pilot, total)
        gated = jax.tree.map(
            lambda g, u: jnp.where(is_finite, g * pilot.gate.astype(g.dtype), jnp.zeros_like(g)).astype(
                u.dtype
            ),
            gradients,
            updates,
        )
        # A loss that is not finite must not reach an inner optimizer that reads losses.
        felt = jnp.where(is_finite, loss, old.emotion.previous)
        changes, rule = inner.update(gated, state.rule, params, value=felt, **extra_args)
        changes = jax.tree.map(lambda c, u: c.astype(u.dtype), changes, state.last)
        pilot, changes, scales = _scales(pilot, changes, means, shard_axis_name)
        scaled = jax.tree.map(
            lambda c, s: jnp.where(is_finite, c * s.astype(c.dtype), jnp.zeros_like(c)), changes, scales
        )
        averaged = state.average
        check_average_of(state, average=average)
        if average:
            after = jax.tree.map(lambda p, c: p.astype(c.dtype) + c, params, scaled)
            averaged = move_average(state.average, after, average_rate(pilot.step, dtype))
            averaged = choose_finite(is_finite, averaged, state.average)
        return scaled, SteeredState(
            skip(is_finite, pilot, old),
            choose_finite(is_finite, rule, state.rule),
            choose_finite(is_finite, changes, state.last),
            averaged,
        )

    return keep_dtypes(optax.GradientTransformationExtraArgs(init_fn, update_fn))


def _scales(
    pilot: PilotState, changes: optax.Updates, means: list[jax.Array], axis_name: AxisName
) -> tuple[PilotState, optax.Updates, Any]:
    """Returns the updates, and the factor for each of them: the courage, bounded by the ceiling.

    An update that is not finite, or too large to be measured, is none.

    Args:
        pilot: the scalars of this step.
        changes: the updates of the inner optimizer.
        means: the mean square of each parameter.
        axis_name: the mapped axes over which the parameters are split.
    """
    if not means:
        return pilot, changes, changes
    _, squares = whole_sums([], changes, pilot.norm.dtype, axis_name)
    scales, lengths, bounds, known = [], [], [], []
    for square, mean in zip(squares, means, strict=True):
        known.append(jnp.isfinite(square))
        size, ceiling = root(jnp.where(known[-1], square, 0.0)), USUAL_SIZE * step_ceiling(mean)
        is_bound = size > ceiling
        scales.append(
            pilot.courage.courage * jnp.where(is_bound, ceiling / jnp.where(is_bound, size, 1.0), 1.0)
        )
        lengths.append(scales[-1] * size)
        bounds.append(is_bound.astype(pilot.norm.dtype))
    bound = functools.reduce(jnp.add, bounds) / len(bounds)
    pilot = pilot._replace(longest=functools.reduce(jnp.maximum, lengths), bound=bound)
    structure = jax.tree.structure(changes)
    known, scales = (jax.tree.unflatten(structure, each) for each in (known, scales))
    changes = jax.tree.map(lambda c, k: jnp.where(k, c, jnp.zeros_like(c)), changes, known)
    return pilot, changes, scales
