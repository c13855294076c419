"""Orbax: save parameters and state, go on from them bit for bit. `python -m examples.orbax_resume`."""

from examples.command import answer_early

if __name__ == "__main__":
    answer_early(__doc__, "integrations", ("jax", "optax", "orbax"))

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

import emo_optax

optimizer = emo_optax.emo_sens(5e-2, use_shadow=True)


def train(params: jax.Array, state: optax.OptState, steps: int) -> tuple[jax.Array, optax.OptState]:
    """Takes some steps towards 0."""
    for _ in range(steps):
        loss, grads = jax.value_and_grad(lambda p: jnp.sum(jnp.square(p)))(params)
        updates, state = optimizer.update(grads, state, params, value=loss)
        params = optax.apply_updates(params, updates)
    return params, state


def save(folder: Path, params: jax.Array, state: optax.OptState) -> None:
    """Writes a checkpoint."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, {"params": params, "state": state})


def load(folder: Path, params: jax.Array) -> tuple[jax.Array, optax.OptState]:
    """Reads it; the target tells Orbax the structure of the state."""
    target: Any = {"params": params, "state": optimizer.init(params)}
    with ocp.StandardCheckpointer() as checkpointer:
        loaded = checkpointer.restore(folder, target)
    return loaded["params"], loaded["state"]


def main() -> bool:
    """Trains with a break and without, prints and returns whether both are equal to the last bit."""
    params = jnp.asarray([1.0, -2.0, 3.0])
    halfway = train(params, optimizer.init(params), 3)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder).absolute() / "step_3", *halfway)
        resumed = train(*load(Path(folder).absolute() / "step_3", params), 3)
    straight = train(*halfway, 3)
    pairs = zip(jax.tree.leaves(resumed), jax.tree.leaves(straight), strict=True)
    are_equal = all(bool(jnp.array_equal(one, other)) for one, other in pairs)
    print("resumed as if there had been no break:", are_equal)
    return are_equal


if __name__ == "__main__":
    main()
