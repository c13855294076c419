"""The first version of EmoPilot's rule, for a comparison with the present version on the same tasks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class FirstRuleState(NamedTuple):
    """The state of the first version: arrays of shape `[]`, and three trees like the parameters.

    Attributes:
        step: steps taken so far.
        short: the short average of the loss.
        long: the long average of the loss.
        previous: the loss of the step before.
        square: the running average of half the squared difference of two losses in a row.
        weight: the weight of `square`.
        norm: the running average of the gradient's norm.
        agreements: the running average of the squared agreement.
        courage: the factor on the learning rate.
        mu: the first moments.
        nu: the second moments.
        average: the averaged weights.
    """

    step: jax.Array
    short: jax.Array
    long: jax.Array
    previous: jax.Array
    square: jax.Array
    weight: jax.Array
    norm: jax.Array
    agreements: jax.Array
    courage: jax.Array
    mu: Any
    nu: Any
    average: Any


def first_rule(rate: Any) -> optax.GradientTransformationExtraArgs:
    """Returns the first version: no warm-up, a courage of up to 100, agreement with Adam's last direction.

    Args:
        rate: the learning rate, an array of shape `[]`.
    """

    def init(params: optax.Params) -> FirstRuleState:
        zero, zeros = jnp.zeros([]), jax.tree.map(jnp.zeros_like, params)
        return FirstRuleState(
            step=zero,
            short=zero,
            long=zero,
            previous=zero,
            square=zero,
            weight=zero,
            norm=zero,
            agreements=zero,
            courage=jnp.ones([]),
            mu=zeros,
            nu=zeros,
            average=params,
        )

    def update(
        grads: optax.Updates, state: FirstRuleState, params: optax.Params, *, value: jax.Array
    ) -> tuple[optax.Updates, FirstRuleState]:
        norm = optax.tree.norm(grads)
        is_finite = jnp.isfinite(norm) & jnp.isfinite(value)
        before = state
        step = state.step + 1.0
        is_first, is_late = step == 1.0, step > 5.0
        state, scalar = _feel(state, value, step)
        kept = jnp.where(is_first, norm, state.norm)
        factor = jnp.minimum(1.0, 2.5 * kept / jnp.maximum(norm, 1e-30))
        grads, norm = jax.tree.map(lambda g: g * factor, grads), norm * factor
        kept = kept + jnp.maximum(0.05, 1.0 / step) * (norm - kept)

        last = _direction(state, jnp.maximum(step - 1.0, 1.0))
        product = optax.tree.vdot(grads, last)
        cosine = product / (norm * optax.tree.norm(last) + 1e-30)
        squares = jnp.where(step == 2.0, cosine**2, state.agreements)
        squares = jnp.where(is_first, 0.0, squares + 0.05 * (cosine**2 - squares))
        agreement = jnp.tanh(cosine / (jnp.sqrt(squares) + 1e-30))
        rise, fall = (jnp.maximum(0.0, (sign * scalar - 0.5) / 0.5) for sign in (1.0, -1.0))
        grown = 0.05 * (1.0 + 40.0 / (step + 10.0)) * (agreement + 0.4 * fall)
        move = jnp.where(is_late, jnp.where(scalar > 0.5, -0.2 * rise, grown), 0.0)
        courage = jnp.clip(state.courage * jnp.exp(move), 0.03, 100.0)

        mu = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state.nu, grads)
        new = state._replace(step=step, norm=kept, agreements=squares, courage=courage, mu=mu, nu=nu)

        def change(u: jax.Array, p: jax.Array) -> jax.Array:
            ceiling = 0.08 * jnp.clip(jnp.sqrt(jnp.mean(p * p)), 0.02, 0.1)
            return jnp.where(is_finite, -courage * jnp.minimum(rate, ceiling) * (u + 0.01 * p), 0.0)

        changes = jax.tree.map(change, _direction(new, step), params)
        part = jnp.minimum(1.0, 9.0 / (step + 8.0))
        average = jax.tree.map(lambda a, p, c: a + part * (p + c - a), state.average, params, changes)
        new = new._replace(average=average)
        return changes, jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), new, before)

    return optax.GradientTransformationExtraArgs(init, update)


def _feel(state: FirstRuleState, loss: jax.Array, step: jax.Array) -> tuple[FirstRuleState, jax.Array]:
    """Returns the state with moved averages of the loss, and the emotion scalar."""
    is_first, is_late = step == 1.0, step > 5.0
    short, long, previous = (jnp.where(is_first, loss, each) for each in state[1:4])
    noise = jnp.sqrt(state.square / jnp.maximum(state.weight, 1e-30))
    difference = jnp.abs(loss - previous)
    difference = jnp.where(is_late, jnp.minimum(difference, 4.0 * noise), difference)
    felt = jnp.where(is_late, jnp.minimum(loss, short + 8.0 * noise), loss)
    short = short + 0.3 * (felt - short)
    long = long + jnp.maximum(0.05, 1.0 / (step + 1.0)) * (felt - long)
    square = 0.95 * state.square + 0.05 * difference**2 / 2.0
    weight = 0.95 * state.weight + 0.05
    width = 2.0 * jnp.sqrt(square / weight) + 1e-7 * jnp.abs(long) + 1e-38
    scalar = jnp.where(is_late, jnp.tanh((short - long) / width), 0.0)
    # The loss of this step as it was, not as it was felt.
    return state._replace(short=short, long=long, previous=loss, square=square, weight=weight), scalar


def _direction(state: FirstRuleState, step: jax.Array) -> Any:
    """Returns Adam's direction from the moments after so many steps."""
    first, second = 1.0 - 0.9**step, 1.0 - 0.999**step
    return jax.tree.map(lambda m, v: m / first / (jnp.sqrt(v / second) + 1e-8), state.mu, state.nu)


def first_weights(state: FirstRuleState, params: Any) -> Any:
    """Returns the averaged weights."""
    del params
    return state.average
