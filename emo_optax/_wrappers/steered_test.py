"""`emo_pilot`, `emo_pilot_airy`, `autopilot`: states of NumPy, empty trees, steps that are not finite."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax

MAKERS: dict[str, Callable[[], Any]] = {
    "emo_pilot": emo_optax.emo_pilot,
    "emo_pilot_airy": emo_optax.emo_pilot_airy,
    "autopilot": lambda: emo_optax.autopilot(optax.adamw(1e-2)),
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@every
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_state_of_numpy_arrays_steps_outside_of_jit(make: Callable[[], Any], shape: Any) -> None:
    optimizer, params = make(), {"w": jnp.ones(shape)}
    state = optimizer.init(params)
    wanted, _ = optimizer.update(params, state, params, value=1.0)
    updates, _ = optimizer.update(params, jax.device_get(state), params, value=1.0)
    np.testing.assert_array_equal(updates["w"], wanted["w"])


@every
@pytest.mark.parametrize("params", [{}, {"w": None}], ids=str)
def test_an_empty_tree_has_an_average(make: Callable[[], Any], params: Any) -> None:
    assert emo_optax.eval_params(make().init(params), params) == params


@every
def test_finite_losses_that_are_too_far_apart_are_skipped(make: Callable[[], Any]) -> None:
    optimizer = make()
    params: Any = {"w": jnp.ones(3)}

    def step(carry: Any, loss: Any) -> tuple[Any, Any]:
        params, state = carry
        updates, state = optimizer.update(params, state, params, value=loss)
        carry = optax.apply_updates(params, updates), state
        return carry, jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(carry)]).all()

    for quiet in (1, 2, 30):
        losses = jnp.asarray([*(1.8e38,) * quiet, -1.8e38, 1.8e38, 1.0, 1.0, -3.4e38, 1.0, 1.0, 1.0])
        (_, state), are_finite = jax.lax.scan(step, (params, optimizer.init(params)), losses)
        assert bool(are_finite.all())
        assert 1 <= int(emo_optax.get_pilot(state).skipped) <= 2


@pytest.mark.parametrize(
    "make", [emo_optax.emo_pilot, lambda: emo_optax.average_weights(emo_optax.emo_sens())]
)
def test_a_parameter_that_is_hidden_from_the_optimizer_stays_as_it_is(make: Callable[[], Any]) -> None:
    optimizer = emo_optax.loss_from_gradient(make())
    params: Any = {"carrier": jnp.zeros(()), "frozen": None, "w": jnp.ones(3)}
    _, state = optimizer.update({**params, "carrier": jnp.ones(())}, optimizer.init(params), params)
    wanted = {**params, "w": params["w"] - 1e-3}
    average = emo_optax.eval_params(state, wanted)
    assert average.keys() == params.keys()
    assert average["frozen"] is None
    assert average["carrier"] == 0.0
    assert average["w"].shape == (3,)
    assert not jnp.array_equal(average["w"], wanted["w"])
    assert emo_optax.eval_params(state, {**params, "carrier": None})["carrier"] is None


def test_a_state_without_an_average_is_refused() -> None:
    state = emo_optax.emo_pilot(average=False).init(jnp.ones(2))
    with pytest.raises(ValueError, match="average=True"):
        emo_optax.eval_params(state, jnp.ones(2))


@pytest.mark.parametrize("make", [emo_optax.emo_pilot, emo_optax.emo_pilot_airy])
@pytest.mark.parametrize("rate", [math.nan, math.inf])
def test_a_step_with_a_learning_rate_that_is_not_finite_is_skipped(make: Any, rate: float) -> None:
    runs = []
    for rates in ([1e-2, rate, 1e-2], [1e-2, 1e-2]):
        params = jnp.linspace(0.5, 2.0, 8)
        state = make().init(params)
        for each in rates:
            optimizer = make(lambda _, each=each: jnp.float32(each))
            loss, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
            updates, state = optimizer.update(grads, state, params, value=loss)
            params = optax.apply_updates(params, updates)
        runs.append((params, state.pilot))
    (params, pilot), (wanted, twin) = runs
    np.testing.assert_array_equal(params, wanted)
    assert int(pilot.skipped) == 1
    assert float(pilot.peak) == float(twin.peak)


@pytest.mark.parametrize(("dtype", "size"), [(jnp.float16, 1e2), (jnp.float32, 1e17)])
def test_an_update_that_is_not_finite_is_no_update(dtype: Any, size: float) -> None:
    params = {name: jnp.asarray([1.0, -2.0, 0.5], dtype) for name in ("large", "calm")}
    optimizer = emo_optax.autopilot(optax.sgd(1e3))
    grads = {"large": params["large"] * size, "calm": jnp.full(3, 1e-4, dtype)}
    updates, state = optimizer.update(grads, optimizer.init(params), params, value=1.0)
    np.testing.assert_array_equal(updates["large"], np.zeros(3))
    assert np.all(np.asarray(updates["calm"]) < 0.0)
    assert math.isfinite(emo_optax.get_pilot(state).learning_rate)
    calm = jax.tree.map(lambda p: jnp.full_like(p, 1e-4), params)
    updates, state = optimizer.update(calm, state, params, value=1.0)
    assert all(np.all(np.asarray(each) < 0.0) for each in updates.values())
    assert math.isfinite(emo_optax.get_pilot(state).courage)
