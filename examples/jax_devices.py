"""Many devices, by all three ways of JAX; with one, it runs too. `python -m examples.jax_devices`."""

from examples.command import answer_early

if __name__ == "__main__":
    answer_early(__doc__, "jax", ("jax", "optax"))

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import emo_optax


def loss_of(params: jax.Array, features: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean squared error."""
    return jnp.mean(jnp.square(features @ params - targets))


def data() -> tuple[jax.Array, jax.Array]:
    """Returns a batch that as many devices as there are can share."""
    features = jax.random.normal(jax.random.key(0), (8 * jax.device_count(), 4))
    return features, features @ jnp.asarray([1.0, -2.0, 3.0, 0.5])


def with_jit(steps: int = 30) -> tuple[float, float]:
    """Trains one program over sharded arrays: the loss is that of the whole batch already."""
    optimizer = emo_optax.emo_sens(5e-2)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, features: Any, targets: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, features, targets)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state, loss

    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        params = jax.device_put(jnp.zeros(4), NamedSharding(mesh, P()))
        state = optimizer.init(params)  # not in jit: there it would not lie like the parameters
        batch = jax.device_put(data(), NamedSharding(mesh, P("data")))
        losses = []
        for _ in range(steps):
            params, state, loss = step(params, state, *batch)
            losses.append(float(loss))
    return losses[0], losses[-1]


def with_shard_map(steps: int = 30) -> tuple[float, float]:
    """Trains a program for each device: gradients are averaged by you, the loss by the optimizer."""
    optimizer = emo_optax.emo_sens(5e-2, axis_name="data")
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P(), P("data"), P("data")), out_specs=P())
    def step(params: Any, state: Any, features: Any, targets: Any) -> Any:
        own = jax.lax.pcast(params, "data", to="varying")
        loss, grads = jax.value_and_grad(loss_of)(own, features, targets)
        grads = jax.lax.pmean(grads, "data")
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state, jax.lax.pmean(loss, "data")

    params = jnp.zeros(4)
    state = optimizer.init(params)
    losses = []
    for _ in range(steps):
        params, state, loss = step(params, state, *data())
        losses.append(float(loss))
    return losses[0], losses[-1]


def with_pmap(steps: int = 30) -> tuple[float, float]:
    """Trains replicas under `jax.pmap`."""
    optimizer = emo_optax.emo_sens(5e-2, axis_name="data")

    @functools.partial(jax.pmap, axis_name="data")
    def step(params: Any, state: Any, features: Any, targets: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, features, targets)
        grads = jax.lax.pmean(grads, "data")
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state, loss

    count = jax.device_count()
    params = jnp.zeros(4)
    params, state = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), (params, optimizer.init(params))
    )
    parts = [leaf.reshape(count, -1, *leaf.shape[1:]) for leaf in data()]
    losses = []
    for _ in range(steps):
        params, state, loss = step(params, state, *parts)
        losses.append(float(loss.mean()))
    return losses[0], losses[-1]


def main() -> list[tuple[float, float]]:
    """Trains in each way, prints and returns the first and the last losses."""
    results = []
    for train in (with_jit, with_shard_map, with_pmap):
        first, last = train()
        print(f"{train.__name__}, {jax.device_count()} devices: loss {first:.2f} -> {last:.2f}")
        results.append((first, last))
    return results


if __name__ == "__main__":
    main()
