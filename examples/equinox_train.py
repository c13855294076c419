"""Equinox: filtered, jitted and donated. Run with `python -m examples.equinox_train`."""

from examples.command import answer_early

if __name__ == "__main__":
    answer_early(__doc__, "integrations", ("jax", "optax", "equinox"))

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import emo_optax

optimizer = emo_optax.emo_sens(1e-2)


@eqx.filter_value_and_grad
def loss_of(model: eqx.nn.MLP, features: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean squared error."""
    return jnp.mean(jnp.square(jax.vmap(model)(features) - targets))


@eqx.filter_jit(donate="all-except-first")
def train_step(
    batch: tuple[jax.Array, jax.Array], model: eqx.nn.MLP, state: optax.OptState
) -> tuple[eqx.nn.MLP, optax.OptState, jax.Array]:
    """Takes one step; model and state are donated, so that the new ones take their place."""
    loss, grads = loss_of(model, *batch)
    params = eqx.filter(model, eqx.is_inexact_array)
    updates, state = optimizer.update(grads, state, params, value=loss)  # pass the loss to the step
    return eqx.apply_updates(model, updates), state, loss


def main(steps: int = 200) -> tuple[float, float]:
    """Fits a sine, prints and returns the first and the last loss."""
    features = jnp.linspace(-2.0, 2.0, 64)[:, None]
    batch = features, jnp.sin(2.0 * features[:, 0])
    model = eqx.nn.MLP(1, "scalar", 16, 1, activation=jnp.tanh, key=jax.random.key(0))
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    losses = []
    for _ in range(steps):
        model, state, loss = train_step(batch, model, state)
        losses.append(float(loss))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {steps} steps")
    print("emotion", emo_optax.get_emotion(state).scalar)
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
