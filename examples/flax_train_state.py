"""Flax's `TrainState`: the loss goes into `apply_gradients`. `python -m examples.flax_train_state`."""

from examples.command import answer_early

if __name__ == "__main__":
    answer_early(__doc__, "integrations", ("jax", "optax", "flax"))

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import emo_optax
from emo_optax.integrations.flax import TrainState


class Network(nn.Module):
    """Two layers."""

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Returns a number for each row."""
        return nn.Dense(1)(nn.tanh(nn.Dense(16)(features)))[:, 0]


@jax.jit
def train_step(state: TrainState, features: jax.Array, targets: jax.Array) -> tuple[TrainState, jax.Array]:
    """Takes one step and returns the loss before it."""

    def loss_of(params: optax.Params) -> jax.Array:
        return jnp.mean(jnp.square(state.apply_fn({"params": params}, features) - targets))

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=grads, value=loss), loss  # pass the loss to the step


def main(steps: int = 200) -> tuple[float, float]:
    """Fits a sine, prints and returns the first and the last loss."""
    features = jnp.linspace(-2.0, 2.0, 64)[:, None]
    targets = jnp.sin(2.0 * features[:, 0])
    network = Network()
    state = TrainState.create(
        apply_fn=network.apply,
        params=network.init(jax.random.key(0), features)["params"],
        tx=optax.chain(optax.clip_by_global_norm(1.0), emo_optax.emo_sens(1e-2)),
    )
    losses = []
    for _ in range(steps):
        state, loss = train_step(state, features, targets)
        losses.append(float(loss))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {int(state.step)} steps")
    print("emotion", emo_optax.get_emotion(state.opt_state).scalar)
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
