"""Trainers of other libraries that pass no loss, or no parameters, on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax

X = jnp.linspace(-1.0, 1.0, 24).reshape(8, 3)
Y = X.sum(1)
START = jnp.asarray([0.1, 0.2, 0.3])


def loss_of(weight: Any) -> jax.Array:
    return jnp.mean((X @ weight - Y) ** 2)


def plain(steps: int) -> Any:
    optimizer = emo_optax.emo_sens(1e-2)
    weight, state = START, optimizer.init(START)
    for _ in range(steps):
        loss, grads = jax.value_and_grad(loss_of)(weight)
        updates, state = optimizer.update(grads, state, weight, value=loss)
        weight = optax.apply_updates(weight, updates)
    return weight


def carried(params: Any) -> jax.Array:
    return emo_optax.carry_loss(loss_of(params["weight"]), params["carrier"])


@pytest.mark.parametrize("way", ["carried", "computed"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jaxopt_takes_the_steps_of_a_plain_loop(way: str) -> None:
    jaxopt = pytest.importorskip("jaxopt", reason="JAXopt is not installed: pip install jaxopt")
    if way == "carried":
        optimizer = emo_optax.loss_from_gradient(emo_optax.emo_sens(1e-2))
        solver = jaxopt.OptaxSolver(carried, optimizer, maxiter=3, tol=0.0)
        found = solver.run({"weight": START, "carrier": jnp.zeros(())}).params["weight"]
    else:
        optimizer = emo_optax.loss_from_function(emo_optax.emo_sens(1e-2), loss_of)
        found = jaxopt.OptaxSolver(loss_of, optimizer, maxiter=3, tol=0.0).run(START).params
    np.testing.assert_allclose(found, plain(3), rtol=1e-6)


def test_dynamax_trains_without_passing_parameters() -> None:
    optimize = pytest.importorskip(
        "dynamax.utils.optimize", reason="dynamax is not installed: pip install dynamax"
    )

    def loss(params: Any, batch: Any) -> jax.Array:
        mean = jnp.mean((batch[0] @ params["weight"] - batch[1]) ** 2)
        return emo_optax.carry_loss(mean, params["carrier"])

    optimizer = emo_optax.loss_from_gradient(emo_optax.emo_sens(1e-2, weight_decay=0.0))
    params, losses = optimize.run_sgd(
        loss, {"weight": START, "carrier": jnp.zeros(())}, (X, Y), optimizer, batch_size=8, num_epochs=3
    )
    assert params["carrier"] == 0.0
    assert losses[-1] < losses[0]
    assert losses[0] == pytest.approx(float(loss_of(START)))
