"""Flax NNX: `optimizer.update` passes the loss on. Run with `python -m examples.flax_nnx`."""

from examples.command import answer_early

if __name__ == "__main__":
    answer_early(__doc__, "integrations", ("jax", "optax", "flax"))

import jax
import jax.numpy as jnp
from flax import nnx

import emo_optax


class Network(nnx.Module):
    """Two layers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(1, 16, rngs=rngs)
        self.out = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, features: jax.Array) -> jax.Array:
        """Returns a number for each row."""
        return self.out(nnx.tanh(self.hidden(features)))[:, 0]


@nnx.jit
def train_step(
    model: Network, optimizer: nnx.Optimizer[Network], features: jax.Array, targets: jax.Array
) -> jax.Array:
    """Takes one step and returns the loss before it."""

    def loss_of(model: Network) -> jax.Array:
        return jnp.mean(jnp.square(model(features) - targets))

    loss: jax.Array
    loss, grads = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, grads, value=loss)  # pass the loss to the step
    return loss


def main(steps: int = 200) -> tuple[float, float]:
    """Fits a sine, prints and returns the first and the last loss."""
    features = jnp.linspace(-2.0, 2.0, 64)[:, None]
    targets = jnp.sin(2.0 * features[:, 0])
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, emo_optax.emo_sens(1e-2), wrt=nnx.Param)
    losses = [float(train_step(model, optimizer, features, targets)) for _ in range(steps)]
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {steps} steps")
    print("emotion", emo_optax.get_emotion(optimizer.opt_state).scalar)
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
