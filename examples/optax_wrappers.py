"""Optax's wrappers that drop the loss, and the code that passes it. `python -m examples.optax_wrappers`."""

from examples.command import answer_early

if __name__ == "__main__":
    answer_early(__doc__, "jax", ("jax", "optax"))

from typing import Any

import jax
import jax.numpy as jnp
import optax

import emo_optax

FEATURES = jnp.linspace(-1.0, 1.0, 48).reshape(12, 4)
TARGETS = FEATURES @ jnp.asarray([1.0, -2.0, 3.0, 0.5])


def loss_of(params: jax.Array, features: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean squared error."""
    return jnp.mean(jnp.square(features @ params - targets))


def with_lookahead(steps: int = 30) -> tuple[float, float]:
    """Trains under a wrapper that drops the loss."""
    optimizer = emo_optax.bind_extra_args(
        lambda inner: optax.lookahead(inner, sync_period=5, slow_step_size=0.5),
        emo_optax.emo_sens(5e-2),
    )

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params.fast, FEATURES, TARGETS)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state, loss

    params = optax.LookaheadParams.init_synced(jnp.zeros(4))
    state = optimizer.init(params)
    losses = []
    for _ in range(steps):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    return losses[0], losses[-1]


def with_accumulation(steps: int = 30) -> tuple[float, float]:
    """Trains on three micro-batches to a step."""
    optimizer = emo_optax.accumulate(emo_optax.emo_sens(5e-2), 3)  # for optax.MultiSteps

    @jax.jit
    def micro_step(params: Any, state: Any, features: Any, targets: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, features, targets)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state  # only each third update is not zero

    params = jnp.zeros(4)
    state = optimizer.init(params)
    losses = []
    for _ in range(steps):
        losses.append(float(loss_of(params, FEATURES, TARGETS)))
        for part in range(3):
            params, state = micro_step(params, state, FEATURES[part::3], TARGETS[part::3])
    return losses[0], losses[-1]


def with_microbatching(steps: int = 30) -> tuple[float, float]:
    """Trains on a batch that is taken in three parts."""
    value_and_grad = optax.microbatching.microbatch(
        jax.value_and_grad(loss_of),
        argnums=(1, 2),
        microbatch_size=4,
        accumulator=optax.microbatching.AccumulationType.MEAN,
    )
    optimizer = emo_optax.emo_sens(5e-2)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        loss, grads = value_and_grad(params, FEATURES, TARGETS)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state, loss

    params = jnp.zeros(4)
    state = optimizer.init(params)
    losses = []
    for _ in range(steps):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    return losses[0], losses[-1]


def main() -> list[tuple[float, float]]:
    """Trains in each way, prints and returns the first and the last losses."""
    results = []
    for train in (with_lookahead, with_accumulation, with_microbatching):
        first, last = train()
        print(f"{train.__name__}: loss {first:.2f} -> {last:.2f}")
        results.append((first, last))
    return results


if __name__ == "__main__":
    main()
