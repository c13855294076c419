"""Members that EmoPilot's scalars steer: all of a step but the direction."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.validation import (
    check_choice,
    check_flag,
    check_learning_rate,
    check_loss,
    check_not_negative,
    check_order,
    check_params,
    checked_mask,
    hyperparameter,
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
    learning_rate_at,
    scheduled,
    skip,
    steer,
    whole_sums,
    with_agreement,
)
from emo_optax._pieces.replicas import AxisName, average_over_replicas, check_axis_name
from emo_optax._pieces.rounding import Rounding
from emo_optax._pieces.sums import sums_of
from emo_optax._pieces.weight_decay import MODES, WeightDecayMode
from emo_optax._rules.directions import Direction
from emo_optax._rules.moments import stored


def piloted(
    rule: Direction,
    *,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule,
    mask: Any | Callable[[optax.Params], Any] | None,
    min_courage: jax.typing.ArrayLike,
    max_courage: jax.typing.ArrayLike,
    gate_limit: jax.typing.ArrayLike,
    average: bool,
    weight_decay_mode: WeightDecayMode,
    rounding: Rounding,
    axis_name: AxisName,
    shard_axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns a member of a direction; the options are those of `emo_pilot`."""
    check_learning_rate(learning_rate)
    check_not_negative("weight_decay", weight_decay, may_be_schedule=True)
    check_choice("weight_decay_mode", weight_decay_mode, MODES)
    check_not_negative("min_courage", min_courage)
    check_not_negative("max_courage", max_courage)
    check_order("min_courage", min_courage, "max_courage", max_courage)
    check_not_negative("gate_limit", gate_limit)
    check_flag("average", average)
    check_axis_name(axis_name)
    check_axis_name(shard_axis_name)
    mask_of = None if mask is None else checked_mask(mask)

    def products(g: jax.Array, mu: jax.Array) -> tuple[jax.Array, ...]:
        def each(g: jax.Array, mu: jax.Array) -> tuple[jax.Array, ...]:
            m = mu.astype(g.dtype)
            return g * g, g * m, m * m

        return sums_of(each, g, mu)

    def init_fn(params: optax.Params) -> SteeredState:
        start = init_average(params) if average else ()
        return SteeredState(init_pilot(wide_dtype(params)), rule.init(params), (), start)

    def update_fn(
        updates: optax.Updates,
        state: SteeredState,
        params: optax.Params,
        *,
        value: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SteeredState]:
        del extra_args
        check_params(params)
        old, moments = state.pilot, state.rule
        dtype = old.norm.dtype
        loss = average_over_replicas(check_loss(value, dtype), axis_name)
        weights = jax.tree.map(lambda p: p.astype(wide_dtype(p)), params)
        gradients = jax.tree.map(lambda g, w: g.astype(w.dtype), updates, weights)
        decays = jax.tree.map(lambda _: True, weights)
        if mask_of is not None:  # A mask may have one boolean for a whole branch.
            decays = jax.tree.map(
                lambda is_decayed, branch: jax.tree.map(lambda _: is_decayed, branch),
                *(mask_of(params), weights),
            )
        decay_rate: Any = weight_decay(old.step) if callable(weight_decay) else weight_decay
        if weight_decay_mode == "l2":
            gradients = jax.tree.map(
                lambda g, w, d: g + jnp.where(d, hyperparameter(decay_rate, g.dtype) * w, 0.0),
                gradients,
                weights,
                decays,
            )
        leaves = zip(*map(jax.tree.leaves, (gradients, moments.mu)), strict=True)
        each = [jnp.stack(products(g, m)).astype(dtype) for g, m in leaves]
        rate = learning_rate_at(learning_rate, old)
        has_rate = jnp.isfinite(rate)
        rate = jnp.where(has_rate, rate, jnp.zeros_like(rate))
        total, means = whole_sums(each, weights, dtype, shard_axis_name)
        pilot, is_finite = steer(
            old,
            loss,
            total[0],
            limit=gate_limit,
            min_courage=min_courage,
            max_courage=max_courage,
            learning_rate=jnp.maximum(old.peak, rate),
        )
        is_finite = is_finite & has_rate
        pilot = with_agreement(pilot, total)

        def move(g: jax.Array, *own: jax.Array) -> tuple[jax.Array, ...]:
            gate = pilot.gate.astype(g.dtype)
            return rule.move(g, gate, pilot.step, *(moment.astype(g.dtype) for moment in own))

        moved = jax.tree.map(move, gradients, *moments)
        news = [
            jax.tree.map(lambda _, r, k=k: r[k], gradients, moved) for k in range(len(rule.are_squares))
        ]
        kept = type(moments)(
            *(
                choose_finite(is_finite, stored(new, before, is_square=is_square), before)
                for new, before, is_square in zip(news, moments, rule.are_squares, strict=True)
            )
        )
        # From the moments after the step: XLA on a CPU would copy the ones before the step, which the new
        # ones overwrite. Moments in another dtype are rounded only where they are stored.
        if not rule.is_rounded:
            # Array by array: with parts of parameters, averages over columns are equal on all devices. A
            # barrier around them and other arrays would hide this from `jax.shard_map`.
            news = kept = jax.tree.map(jax.lax.optimization_barrier, kept)

        def turn(g: jax.Array, *own: jax.Array) -> jax.Array:
            return rule.turn(pilot.step, *(moment.astype(g.dtype) for moment in own))

        u = jax.tree.map(turn, gradients, *news)
        pilot, steps = step_lengths(pilot, weights, means, rate)

        def change(u: jax.Array, p: jax.Array, w: jax.Array, length: jax.Array, decays: Any) -> jax.Array:
            length = length.astype(w.dtype)
            rate = hyperparameter(decay_rate, w.dtype)
            down = -length * u
            if weight_decay_mode == "decoupled":
                down = down - jnp.where(decays, length * rate * w, 0.0)
            if weight_decay_mode == "absolute":
                down = down - jnp.where(decays, rate * w, 0.0)
            if p.dtype != w.dtype:
                down = (w + down) - w  # As emo_torch, which moves the weight in float32 and then rounds.
            return jnp.where(is_finite, down, jnp.zeros_like(down))

        changes = jax.tree.map(change, u, params, weights, steps, decays)
        averaged = state.average
        check_average_of(state, average=average)
        if average:
            after = jax.tree.map(jnp.add, weights, changes)
            averaged = move_average(state.average, after, average_rate(pilot.step, dtype))
            averaged = choose_finite(is_finite, averaged, state.average)
        return changes, SteeredState(skip(is_finite, pilot, old), kept, (), averaged)

    return keep_dtypes(optax.GradientTransformationExtraArgs(init_fn, update_fn), rounding)


def step_lengths(
    pilot: PilotState, weights: optax.Params, means: list[jax.Array], rate: jax.Array
) -> tuple[PilotState, Any]:
    r"""Returns the step of each parameter, :math:`k\,\frac{\eta}{\eta_{max}} \min(\eta_{max}, C)`."""
    peak = jnp.maximum(pilot.peak, rate)
    if not means:
        return pilot._replace(peak=peak), weights
    ceilings = [step_ceiling(mean) for mean in means]
    lengths = [pilot.courage.courage * scheduled(rate, peak) * jnp.minimum(peak, each) for each in ceilings]
    bounds = [(each < peak).astype(peak.dtype) for each in ceilings]
    longest = functools.reduce(jnp.maximum, lengths)
    pilot = pilot._replace(peak=peak, longest=longest, bound=functools.reduce(jnp.add, bounds) / len(means))
    return pilot, jax.tree.unflatten(jax.tree.structure(weights), lengths)
