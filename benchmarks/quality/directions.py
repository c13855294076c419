"""Other directions under the scalars of EmoPilot: the study on which `emo_pilot_airy` was built."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from emo_optax._pieces.averaged_weights import average_rate, init_average, move_average
from emo_optax._pieces.pilot import (
    SteeredState,
    choose_finite,
    init_pilot,
    learning_rate_at,
    skip,
    steer,
    whole_sums,
    with_agreement,
)
from emo_optax._wrappers.piloted import step_lengths


def piloted(direction: optax.GradientTransformation, rate: Any) -> optax.GradientTransformationExtraArgs:
    """Returns EmoPilot with another direction, for this study; the state keeps the last direction.

    Args:
        direction: from gradients to a direction of descent whose elements are about 1 at most.
        rate: the learning rate, an array of shape `[]`.
    """

    def init(params: optax.Params) -> SteeredState:
        last = jax.tree.map(jnp.zeros_like, params)
        return SteeredState(init_pilot(jnp.float32), direction.init(params), last, init_average(params))

    def update(
        grads: optax.Updates, state: SteeredState, params: optax.Params, *, value: jax.Array
    ) -> tuple[optax.Updates, SteeredState]:
        pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(state.last), strict=True)
        products = [jnp.stack([jnp.sum(g * g), jnp.sum(g * u), jnp.sum(u * u)]) for g, u in pairs]
        total, means = whole_sums(products, params, jnp.float32, None)
        learning_rate = learning_rate_at(lambda _: rate, state.pilot)
        pilot, is_finite = steer(
            *(state.pilot, value, total[0]),
            limit=2.5,
            min_courage=0.03,
            max_courage=1000.0,
            learning_rate=learning_rate,
        )
        pilot = with_agreement(pilot, total)
        gated = jax.tree.map(lambda g: g * pilot.gate, grads)
        last, rule = direction.update(gated, state.rule, params)
        pilot, lengths = step_lengths(pilot, params, means, learning_rate)
        changes = jax.tree.map(
            lambda u, p, length: jnp.where(is_finite, -length * (u + 0.01 * p), 0.0), last, params, lengths
        )
        after = optax.apply_updates(params, changes)
        average = move_average(state.average, after, average_rate(pilot.step, jnp.float32))
        new = SteeredState(skip(is_finite, pilot, state.pilot), rule, last, average)
        return changes, new._replace(**choose_finite(is_finite, *(_trees(each) for each in (new, state))))

    return optax.GradientTransformationExtraArgs(init, update)


def _trees(state: SteeredState) -> dict[str, Any]:
    return {"rule": state.rule, "last": state.last, "average": state.average}


def factors(momentum: float | None) -> optax.GradientTransformation:
    """Returns Adafactor's direction: second moment R C / mean(R), updates clipped to a mean square of 1."""
    scale = optax.scale_by_factored_rms(min_dim_size_to_factor=2)
    clip = optax.clip_by_block_rms(1.0)
    return optax.chain(scale, clip, *([] if momentum is None else [optax.ema(momentum)]))


def signs(b1: float = 0.9, b2: float = 0.99) -> optax.GradientTransformation:
    """Returns Lion's direction where it agrees with the gradient, over the share of such elements."""

    def update(grads: optax.Updates, momentum: Any, params: Any = None) -> tuple[Any, Any]:
        del params

        def each(g: jax.Array, m: jax.Array) -> jax.Array:
            sign = jnp.sign(b1 * m + (1 - b1) * g)
            agrees = (sign * g > 0).astype(g.dtype)
            return sign * agrees / jnp.maximum(agrees.mean(), 1e-3)

        found = jax.tree.map(each, grads, momentum)
        return found, jax.tree.map(lambda g, m: b2 * m + (1 - b2) * g, grads, momentum)

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)
