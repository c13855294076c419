"""Hyperparameters that change in a run. `python -m examples.inject_hyperparams`."""

from examples.command import answer_early

if __name__ == "__main__":
    answer_early(__doc__, "jax", ("jax", "optax"))

from typing import Any

import jax
import jax.numpy as jnp
import optax

import emo_optax

optimizer = optax.inject_hyperparams(
    emo_optax.emo_sens,
    static_args=("mask", "shadow_ratio", "moment_dtype"),
    hyperparam_dtype=jnp.float32,  # without it 0.999 becomes 1.0 beside bfloat16 parameters
)(learning_rate=1e-2)


def loss_of(params: jax.Array) -> jax.Array:
    """Returns a loss in float32 of parameters in bfloat16."""
    return jnp.sum(jnp.square(params.astype(jnp.float32) - 0.3))


@jax.jit
def step(params: jax.Array, state: Any) -> tuple[jax.Array, Any, jax.Array]:
    """Takes one step."""
    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, state = optimizer.update(grads, state, params, value=loss)
    return optax.apply_updates(params, updates), state, loss


def main(steps: int = 40) -> tuple[float, float]:
    """Trains, halves the learning rate on the way, prints and returns the first and the last loss."""
    params = jnp.linspace(-1.0, 1.0, 8, dtype=jnp.bfloat16)
    state = jax.jit(optimizer.init)(params)
    losses = []
    for index in range(steps):
        if index == steps // 2:
            state.hyperparams["learning_rate"] = jnp.asarray(5e-3)
        params, state, loss = step(params, state)
        losses.append(float(loss))
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
