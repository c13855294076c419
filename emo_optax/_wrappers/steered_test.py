"""`emo_pilot`, `emo_pilot_airy`, `autopilot`: states of NumPy, empty trees, steps that are not finite."""

import functools
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


DIRECTIONS = [
    emo_optax.emo_pilot,
    emo_optax.emo_pilot_airy,
    lambda **own: emo_optax.autopilot(optax.sgd(1e-2), **own),
]
every = pytest.mark.parametrize("make", DIRECTIONS, ids=["emo_pilot", "emo_pilot_airy", "autopilot"])


@every
def test_an_average_that_would_rest_is_refused(make: Callable[..., Any]) -> None:
    params = {"w": jnp.ones(3)}
    for one, other in ((True, False), (False, True)):
        state = make(average=one).init(params)
        with pytest.raises(ValueError, match=r"average\['w'\]"):
            make(average=other).update(params, state, params, value=1.0)


@every
def test_the_gradient_through_updates_is_finite_at_a_parameter_of_zeros(make: Callable[..., Any]) -> None:
    optimizer = make()

    def after(params: Any) -> jax.Array:
        state = optimizer.init(params)
        for _ in range(3):
            loss, grads = jax.value_and_grad(lambda p: jnp.sum((p["w"] * 2.0 + p["b"] - 1.0) ** 2))(params)
            updates, state = optimizer.update(grads, state, params, value=loss)
            params = optax.apply_updates(params, updates)
        return jnp.sum(params["w"]) + jnp.sum(params["b"])

    grads = jax.grad(after)({"w": jnp.asarray([1.0, -2.0]), "b": jnp.zeros(())})
    assert all(bool(jnp.isfinite(each).all()) for each in jax.tree.leaves(grads))


@every
@pytest.mark.parametrize("is_masked", [False, True])
def test_what_is_read_from_a_state_outlives_the_donated_state(
    make: Callable[..., Any], is_masked: bool
) -> None:
    optimizer = optax.masked(make(), {"w": True, "v": False}) if is_masked else make()
    params = {"w": jnp.ones(3), "v": jnp.full(3, 2.0)}
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any) -> Any:
        updates, state = optimizer.update(params, state, params, value=1.0)
        return optax.apply_updates(params, updates), state

    params, state = step(params, state)
    average = emo_optax.eval_params(state, params)
    read = emo_optax.get_metrics(state, as_floats=False), emo_optax.get_pilot(state)
    wanted = jax.tree.map(np.asarray, (average, read))
    params, state = step(params, state)
    jax.tree.map(np.testing.assert_array_equal, (average, read), wanted)
    step(emo_optax.eval_params(state, params), state)  # No array is donated twice.


@pytest.mark.parametrize("make", [emo_optax.emo_pilot, emo_optax.emo_pilot_airy])
def test_a_schedule_of_another_shape_is_refused(make: Any) -> None:
    params = {"w": jnp.ones(3), "b": jnp.ones(())}
    optimizer = make(lambda _: jnp.full((1,), 1e-2))
    with pytest.raises(ValueError, match="must return one number"):
        optimizer.update(params, optimizer.init(params), params, value=1.0)


@pytest.mark.parametrize("inner", ["adam", "emo_pilot"])
def test_the_average_of_complex_weights_is_complex(inner: str) -> None:
    split = functools.partial(emo_optax.bind_extra_args, optax.contrib.split_real_and_imaginary)
    own = optax.adam(0.1) if inner == "adam" else split(emo_optax.emo_pilot(average=False))
    optimizer = emo_optax.average_weights(own)
    params = jnp.asarray([1.0 + 2.0j, 3.0 - 4.0j], jnp.complex64)
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(params, state, params, value=1.0)
        params = optax.apply_updates(params, updates)
    average = emo_optax.eval_params(state, params)
    assert average.dtype == jnp.complex64
    assert np.all(np.abs(np.imag(average)) > np.abs(np.imag(params)))


PIECES: dict[str, Callable[[], Any]] = {
    "gate_by_norm": emo_optax.gate_by_norm,
    "add_weight_decay": lambda: emo_optax.add_weight_decay(0.1),
    "blend_with_shadow": lambda: emo_optax.share_emotion(emo_optax.blend_with_shadow()),
    "fresh_sign": lambda: emo_optax.share_pulse(emo_optax.scale_by_fresh_sign()),
    **{
        name: getattr(emo_optax, f"scale_by_{name}")
        for name in ("uncorrected_adam", "factored_moments", "lion", "sign", "cautious_sign", "softsign")
    },
}


@pytest.mark.parametrize("name", PIECES)
def test_a_piece_refuses_complex_gradients_and_drops_no_part_of_them(name: str) -> None:
    piece, params = optax.with_extra_args_support(PIECES[name]()), jnp.asarray([1.0 + 2.0j])
    with pytest.raises(ValueError, match="split_real_and_imaginary"):
        piece.update(params, piece.init(params), params, value=1.0)


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
